"""A gateway on a bench: the test plays the coordinator and a client, over the real sockets of both sides.

Generated stubs have no types, so calls are `Any` here: `await call` for one answer, `await call.read()` for the next of
a stream.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, cast

import grpc
import pytest
import zmq.asyncio
from google.rpc import error_details_pb2, status_pb2

from semipd.gateway.server import Gateway
from semipd.internal.v1 import gateway_pb2 as gw
from semipd.internal.v1 import sequence_pb2 as seq
from semipd.v1 import generation_pb2 as pb
from semipd.v1 import generation_pb2_grpc
from semipd.wire.sockets import RunDir, bind_router

PATIENCE_S = 90.0


class FakeCoordinator:
    """The other end of the wire. `expect` what the gateway says; `say` what it shall hear."""

    def __init__(self, run_dir: RunDir) -> None:
        self._context = zmq.asyncio.Context()
        # A socket is of its context's kind: this one is a zmq.asyncio.Socket.
        self._socket: Any = bind_router(cast(Any, self._context), run_dir.gateway_endpoint)
        self._gateway = b""

    async def expect(self, kind: str) -> Any:
        """Returns the next message, which must be of that kind."""
        async with asyncio.timeout(PATIENCE_S):
            self._gateway, frame = await self._socket.recv_multipart()
        message = gw.FromGateway.FromString(frame)
        assert message.WhichOneof("message") == kind, message
        return getattr(message, kind)

    async def say(self, **message: Any) -> None:
        await self._socket.send_multipart((self._gateway, gw.ToGateway(**message).SerializeToString()))

    async def admit(self) -> gw.Submit:
        """Takes on the next request and returns it."""
        submit: gw.Submit = await self.expect("submit")
        await self.say(admitted=gw.Admitted(ticket=submit.ticket))
        return submit

    async def deltas(self, *deltas: gw.Delta) -> None:
        await self.say(deltas=gw.Deltas(deltas=deltas))

    async def refuse(self, ticket: int, reason: str, message: str = "no", **more: Any) -> None:
        await self.say(ended=gw.Ended(ticket=ticket, failure=gw.Failure(reason=reason, message=message, **more)))

    def close(self) -> None:
        self._socket.close()
        self._context.term()


TIMINGS = pb.Timings(queue=0.1, prefill=0.2, time_to_first_token=0.3, decode=0.4)


def make_delta(
    ticket: int, position: int, tokens: Sequence[int], *, index: int = 0, end: seq.EndReason | None = None, **more: Any
) -> gw.Delta:
    """Makes a message with tokens of a sample, the last of them if `end` is given."""
    message = gw.Delta(ticket=ticket, index=index, position=position, tokens=tokens, **more)
    if end is not None:
        stop = tokens[-1] if end == seq.END_REASON_STOP_TOKEN else None
        message.end.CopyFrom(seq.End(reason=end, stop_token_id=stop))
        message.timings.CopyFrom(TIMINGS)
    return message


class FailureDetails:
    """Reads what a failed RPC tells: its status code and the one ErrorInfo that it must carry."""

    def __init__(self, error: grpc.aio.AioRpcError) -> None:
        self.code = error.code()
        self.message = error.details() or ""
        self.trailers = dict(error.trailing_metadata())
        self.status = status_pb2.Status.FromString(self.trailers["grpc-status-details-bin"])
        [self.info] = self._all(error_details_pb2.ErrorInfo)
        assert self.info.domain == "semipd"
        assert self.status.code == self.code.value[0]

    def _all(self, kind: type[Any]) -> list[Any]:
        found: list[Any] = []
        for detail in self.status.details:
            if detail.Is(kind.DESCRIPTOR):
                found.append(kind())
                detail.Unpack(found[-1])
        return found

    @property
    def violations(self) -> dict[str, str]:
        [bad] = self._all(error_details_pb2.BadRequest)
        return {violation.field: violation.description for violation in bad.field_violations}

    @property
    def retry_ms(self) -> int:
        [retry] = self._all(error_details_pb2.RetryInfo)
        return int(retry.retry_delay.ToMilliseconds())


async def failure_of(awaited: Awaitable[object]) -> FailureDetails:
    """Asserts that the RPC fails, and returns what it tells."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await awaited
    return FailureDetails(caught.value)


class GatewayBench:
    """A gateway with its coordinator and a client's channel."""

    def __init__(self, coordinator: FakeCoordinator, gateway: Gateway, channel: grpc.aio.Channel) -> None:
        self.coordinator = coordinator
        self.gateway = gateway
        self.channel = channel
        self.generation: Any = generation_pb2_grpc.GenerationServiceStub(channel)

    def stream(self, timeout: float | None = PATIENCE_S, metadata: Any = None, **generation: Any) -> Any:
        """Begins a GenerateStream; `generation` are the fields of its Generation."""
        request = pb.GenerateStreamRequest(generation=pb.Generation(**generation))
        return self.generation.GenerateStream(request, timeout=timeout, metadata=metadata)

    def generate(self, timeout: float | None = PATIENCE_S, **generation: Any) -> Any:
        """Begins a Generate; `generation` are the fields of its Generation."""
        request = pb.GenerateRequest(generation=pb.Generation(**generation))
        return self.generation.Generate(request, timeout=timeout)


OpenBench = Callable[..., AbstractAsyncContextManager[GatewayBench]]
"""The type of the fixture `open_bench`: its arguments are the channel's `options` and fields of ServerConfig."""
