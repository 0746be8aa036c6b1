"""A worker's messages to and from the coordinator."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

import zmq

from semipd.internal.v1 import worker_pb2 as wk
from semipd.wire.sockets import RunDir, connect_dealer

HEARTBEAT_S = 0.25
"""Seconds between two heartbeats, at least."""


class CoordinatorLink:
    """Receives and sends one message at a time. Sending never waits."""

    def __init__(self, run_dir: Path, incarnation: int) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = connect_dealer(self._context, RunDir(run_dir).worker_endpoint, f"worker.{incarnation}")

    def receive(self, wait_s: float = 0.0) -> wk.ToWorker | None:
        """Returns the next message, or None where none comes within `wait_s` seconds."""
        if wait_s > 0 and not self._socket.poll(int(wait_s * 1000)):
            return None
        try:
            return wk.ToWorker.FromString(self._socket.recv(zmq.DONTWAIT))
        except zmq.Again:
            return None

    def send(self, message: wk.FromWorker) -> None:
        self._socket.send(message.SerializeToString(), zmq.DONTWAIT)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # The last message, of a failure for instance, is worth a wait of half a second.
        self._socket.close(linger=500)
        self._context.term()


class HeartbeatPulse:
    """A `Pulse` that counts beats and sends the count to the coordinator, once in HEARTBEAT_S at most."""

    def __init__(self, link: CoordinatorLink, describe: Callable[[wk.Heartbeat], None]) -> None:
        """`describe` adds to each heartbeat what this worker holds and has answered."""
        self._link = link
        self._describe = describe
        self._count = 0
        self._next_s = 0.0

    def beat(self) -> None:
        self._count += 1
        self.report()

    def report(self) -> None:
        now = time.monotonic()
        if now >= self._next_s:
            self._next_s = now + HEARTBEAT_S
            beat = wk.Heartbeat(pulses=self._count)
            self._describe(beat)
            self._link.send(wk.FromWorker(heartbeat=beat))
