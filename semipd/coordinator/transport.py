"""The coordinator's sockets: one ZeroMQ ROUTER to the gateways, one to the workers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from types import TracebackType
from typing import Self

import structlog
import zmq
from google.protobuf.message import DecodeError

from semipd.coordinator.requests import Ticket
from semipd.core.request import Delta
from semipd.internal.v1 import gateway_pb2 as gw
from semipd.internal.v1 import worker_pb2 as wk
from semipd.wire.codec import delta_to_wire
from semipd.wire.sockets import RunDir, bind_router

log = structlog.get_logger()


class ZmqTransport:
    """The coordinator's Transport. Deltas are gathered until `flush`, which sends one message to each gateway.

    First tokens go in a message of their own, before all others: a gateway needs some time for the tokens of a decode
    step, and clients wait for a first token more than for a later one.
    """

    def __init__(self, run_dir: RunDir) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.gateways = bind_router(self._context, run_dir.gateway_endpoint)
        self.workers = bind_router(self._context, run_dir.worker_endpoint)
        self._firsts: defaultdict[bytes, gw.ToGateway] = defaultdict(gw.ToGateway)
        self._others: defaultdict[bytes, gw.ToGateway] = defaultdict(gw.ToGateway)

    def to_gateway(self, gateway: bytes, message: gw.ToGateway) -> None:
        # Deltas that were gathered before this message are sent before it.
        for gathered in (self._firsts, self._others):
            if gateway in gathered:
                _send(self.gateways, gateway, gathered.pop(gateway).SerializeToString())
        _send(self.gateways, gateway, message.SerializeToString())

    def delta(self, ticket: Ticket, delta: Delta) -> None:
        gathered = self._others if delta.position else self._firsts
        gathered[ticket.gateway].deltas.deltas.append(delta_to_wire(ticket.number, delta))

    def token(self, ticket: Ticket, index: int, position: int, token: int) -> None:
        gathered = self._others if position else self._firsts
        gathered[ticket.gateway].deltas.deltas.add(
            ticket=ticket.number, index=index, position=position, tokens=(token,)
        )

    def to_worker(self, incarnation: int, message: wk.ToWorker) -> None:
        _send(self.workers, worker_identity(incarnation), message.SerializeToString())

    def flush(self) -> None:
        """Sends the deltas that were gathered."""
        for gathered in (self._firsts, self._others):
            for gateway, message in gathered.items():
                _send(self.gateways, gateway, message.SerializeToString())
            gathered.clear()

    def from_gateways(self) -> Iterator[tuple[bytes, gw.FromGateway]]:
        """Yields the gateway and its message, for the messages that have come."""
        for identity, frame in _received(self.gateways):
            try:
                yield identity, gw.FromGateway.FromString(frame)
            except DecodeError:
                log.error("a gateway sent what is no message", gateway=identity.decode(errors="replace"))

    def from_workers(self) -> Iterator[tuple[int, wk.FromWorker]]:
        """Yields the worker's incarnation and its message, for the messages that have come."""
        for identity, frame in _received(self.workers):
            try:
                yield int(identity.removeprefix(b"worker.")), wk.FromWorker.FromString(frame)
            except (DecodeError, ValueError):
                log.error("a worker sent what is no message", worker=identity.decode(errors="replace"))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.gateways.close()
        self.workers.close()
        self._context.term()


def worker_identity(incarnation: int) -> bytes:
    """Returns the ZeroMQ identity of a worker."""
    return f"worker.{incarnation}".encode()


def _send(socket: zmq.Socket[bytes], identity: bytes, frame: bytes) -> None:
    try:
        socket.send_multipart((identity, frame), zmq.DONTWAIT)
    except zmq.ZMQError as error:  # not connected, or stalled to the high-water mark: the supervisor notices
        log.debug("not delivered", to=identity.decode(errors="replace"), why=str(error))


def _received(socket: zmq.Socket[bytes]) -> Iterator[tuple[bytes, bytes]]:
    """Yields the messages that have come, without waiting. At most 10,000, so that other work is done in between."""
    for _ in range(10_000):
        try:
            frames = socket.recv_multipart(zmq.DONTWAIT)
        except zmq.Again:
            return
        if len(frames) == 2:
            yield frames[0], frames[1]
