"""The gateway's end of the wire to the coordinator: one DEALER socket for all requests."""

from __future__ import annotations

import asyncio
import itertools
import os
import secrets
from collections.abc import Callable
from types import TracebackType
from typing import Self

import structlog
import zmq
from google.protobuf.message import DecodeError

from semipd.core.errors import InternalError, Reason, RequestError, Unavailable
from semipd.core.request import Request
from semipd.gateway.response_buffer import ResponseBuffer
from semipd.internal.v1 import gateway_pb2 as gw
from semipd.v1 import generation_pb2 as public
from semipd.wire.codec import failure_from_wire, request_to_wire
from semipd.wire.sockets import RunDir, connect_dealer

log = structlog.get_logger()

ANSWER_S = 10.0
"""Seconds to wait for an answer; a coordinator that lives needs milliseconds."""
FRAMES_A_TURN = 256
"""Messages that are read before the event loop may do something else."""


class CoordinatorClient:
    """Sends requests and hands what comes back to their buffers. Open it in the event loop that uses it.

    It reads its socket when the loop says so rather than through zmq.asyncio, whose futures cost more than a message.
    """

    def __init__(self, run_dir: RunDir, name: str, on_state: Callable[[gw.ServerState], None]) -> None:
        self._endpoint = run_dir.gateway_endpoint
        self._name = name
        self._on_state = on_state
        # A gateway that takes the place of a dead one must not get what is still on its way to the other.
        self._numbers = itertools.count(secrets.randbits(31) << 20)
        self._buffers: dict[int, ResponseBuffer] = {}
        self._answers: dict[int, asyncio.Future[gw.Answer]] = {}
        self._reading = False

    def __enter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = connect_dealer(self._context, self._endpoint, self._name)
        self._fd: int = self._socket.getsockopt(zmq.FD)  # type: ignore[assignment]
        self._loop.add_reader(self._fd, self._read)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.remove_reader(self._fd)
        self._socket.close()
        self._context.term()

    # --- to the coordinator -------------------------------------------------------------------------------------------

    def hello(self, port: int) -> None:
        """Says that this gateway listens on `port`."""
        self._send(gw.FromGateway(hello=gw.GatewayHello(pid=os.getpid(), port=port)))

    def submit(self, request: Request, make_buffer: Callable[[int], ResponseBuffer]) -> tuple[int, ResponseBuffer]:
        """Submits a request. Returns its ticket, and the buffer that `make_buffer` made for its answers.

        Whoever submits must `close` the ticket.
        """
        ticket = next(self._numbers)
        buffer = self._buffers[ticket] = make_buffer(ticket)
        try:
            self._send(gw.FromGateway(submit=request_to_wire(ticket, request)))
        except BaseException:
            del self._buffers[ticket]
            raise
        return ticket, buffer

    def close(self, ticket: int) -> None:
        """Forgets the ticket. If the request is not over, its client has left, and the coordinator is told."""
        buffer = self._buffers.pop(ticket, None)
        if buffer is not None and not buffer.over:
            self._send(gw.FromGateway(cancel=gw.Cancel(ticket=ticket, cause=gw.CANCEL_CAUSE_CLIENT_GONE)))

    def stop_matched(self, ticket: int, index: int, output_tokens: int) -> None:
        """Says that a stop string ended the sample `index` after `output_tokens` tokens."""
        matched = gw.StopMatched(ticket=ticket, index=index, output_tokens=output_tokens)
        self._send(gw.FromGateway(stop_matched=matched))

    def count_refusal(self, reason: Reason) -> None:
        """Tells the coordinator, which counts it, that a request was refused here."""
        self._send(gw.FromGateway(door_refusal=gw.DoorRefusal(reason=reason.value)))

    async def abort(self, request_id: str) -> public.AbortResponse:
        """Ends a request on behalf of an operator, whichever gateway it came through."""
        ask_id = next(self._numbers)
        cancel = gw.Cancel(request_id=request_id, cause=gw.CANCEL_CAUSE_OPERATOR, ask_id=ask_id)
        return (await self._answer(ask_id, gw.FromGateway(cancel=cancel), ANSWER_S)).abort

    async def ask(self, question: gw.Ask, timeout_s: float = ANSWER_S) -> gw.Answer:
        """Returns the answer. Raises the RequestError that is the answer, and Unavailable if none comes in time."""
        question.ask_id = next(self._numbers)
        return await self._answer(question.ask_id, gw.FromGateway(ask=question), timeout_s)

    async def _answer(self, ask_id: int, message: gw.FromGateway, timeout_s: float) -> gw.Answer:
        future: asyncio.Future[gw.Answer] = self._loop.create_future()
        self._answers[ask_id] = future
        try:
            self._send(message)
            async with asyncio.timeout(timeout_s):
                answer = await future
        except TimeoutError:
            raise Unavailable("the coordinator does not answer", reason=Reason.NOT_READY) from None
        finally:
            del self._answers[ask_id]
        if answer.HasField("failure"):
            raise failure_of(answer.failure)
        return answer

    def _send(self, message: gw.FromGateway) -> None:
        try:
            self._socket.send(message.SerializeToString(), zmq.DONTWAIT)
        except zmq.Again:
            raise Unavailable("the coordinator does not answer", reason=Reason.NOT_READY) from None
        # Sending may take note of what arrived, and then the descriptor does not tell of it again.
        self._read_soon()

    # --- from the coordinator -----------------------------------------------------------------------------------------

    def _read_soon(self) -> None:
        if not self._reading:
            self._reading = True
            self._loop.call_soon(self._read)

    def _read(self) -> None:
        self._reading = False
        for _ in range(FRAMES_A_TURN):
            try:
                frame = self._socket.recv(zmq.DONTWAIT)
            except zmq.ZMQError as error:
                if error.errno in (zmq.EAGAIN, zmq.ENOTSOCK):  # nothing there; or closed since the call was asked for
                    return
                raise
            try:
                self._on_message(gw.ToGateway.FromString(frame))
            except DecodeError:
                log.error("the coordinator sent what is no message")
        self._read_soon()

    def _on_message(self, message: gw.ToGateway) -> None:
        match message.WhichOneof("message"):
            case "deltas":
                self._on_deltas(message.deltas)
            case "admitted":
                buffer = self._buffers.get(message.admitted.ticket)
                if buffer is not None:
                    buffer.admit()
            case "ended":
                buffer = self._buffers.get(message.ended.ticket)
                if buffer is not None:
                    buffer.fail(failure_of(message.ended.failure))
            case "answer":
                future = self._answers.get(message.answer.ask_id)
                if future is not None and not future.done():
                    future.set_result(message.answer)
            case "state":
                self._on_state(message.state)

    def _on_deltas(self, message: gw.Deltas) -> None:
        buffers = self._buffers
        for delta in message.deltas:
            # None: cancelled here while these were on their way.
            buffer = buffers.get(delta.ticket)
            if buffer is not None:
                self._deliver(buffer, delta)

    def _deliver(self, buffer: ResponseBuffer, delta: gw.Delta) -> None:
        """Gives a delta to its request. Whatever goes wrong ends that request, never the reading."""
        try:
            buffer.deliver(delta)
        except Exception as error:
            log.error("a delta can't be delivered", error=type(error).__name__, ticket=delta.ticket)
            cancel = gw.Cancel(ticket=delta.ticket, cause=gw.CANCEL_CAUSE_CLIENT_GONE)
            if not buffer.over:
                self._send(gw.FromGateway(cancel=cancel))
            buffer.fail(error if isinstance(error, RequestError) else InternalError("an answer can't be delivered"))


def failure_of(failure: gw.Failure) -> RequestError:
    """Returns what `failure_from_wire` does; a reason that this gateway doesn't know is a bug and told as one."""
    try:
        return failure_from_wire(failure)
    except ValueError:
        log.error("the coordinator names an unknown reason", reason=failure.reason)
        return InternalError("the server failed for a reason that it can't name")
