"""A worker's side of the wire."""

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


class CoordinatorLink:
    """Receives and sends one message at a time. Sending never waits."""

    def __init__(self, run_dir: Path, incarnation: int) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = connect_dealer(self._context, RunDir(run_dir).worker_endpoint, f"worker.{incarnation}")

    def receive(self, wait_s: float = 0.0) -> wk.ToWorker | None:
        """The next message, or None where none comes within `wait_s`."""
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
        # What was said last (a failure, say) is worth a moment.
        self._socket.close(linger=500)
        self._context.term()


class Pulse:
    """Counts progress and reports it, at most each quarter of a second. Call it once a layer, and when idle."""

    def __init__(self, link: CoordinatorLink, describe: Callable[[wk.Heartbeat], None]) -> None:
        self._link = link
        self._describe = describe
        self._count = 0
        self._next_s = 0.0

    def __call__(self) -> None:
        self._count += 1
        self.report()

    def report(self) -> None:
        """Without progress: still there, and that is all."""
        now = time.monotonic()
        if now >= self._next_s:
            self._next_s = now + HEARTBEAT_S
            beat = wk.Heartbeat(pulses=self._count)
            self._describe(beat)
            self._link.send(wk.FromWorker(heartbeat=beat))
