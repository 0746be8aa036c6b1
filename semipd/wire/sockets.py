"""ZeroMQ sockets in a private folder. A message is one frame; ROUTER sockets see the peer's identity before it."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import zmq

QUEUED_MESSAGES = 100_000
"""High-water mark. Everything that is queued belongs to an accepted request, and those are bounded by admission."""


@contextmanager
def private_folder() -> Iterator[Path]:
    """Makes a temporary folder that only we may open (0700) and removes it at the end.

    Its name is short, because the path of a Unix socket ends at 107 bytes.
    """
    path = Path(tempfile.mkdtemp(prefix="semipd-"))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


@dataclass(frozen=True, slots=True)
class RunDir:
    """A server's private folder (0700): its sockets and its resolved configuration."""

    path: Path

    @property
    def config(self) -> Path:
        return self.path / "config.json"

    def keep(self, config: str) -> None:
        """Writes the configuration. A process that reads it meanwhile finds the old or the new one, whole."""
        draft = self.path / ".config.json"
        draft.write_text(config)
        draft.replace(self.config)

    @property
    def gateway_endpoint(self) -> str:
        return f"ipc://{self.path}/gateway.sock"

    @property
    def worker_endpoint(self) -> str:
        return f"ipc://{self.path}/worker.sock"

    @property
    def resident_socket(self) -> Path:
        return self.path / "resident.sock"


def _options(socket: zmq.Socket[bytes]) -> None:
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.SNDHWM, QUEUED_MESSAGES)
    socket.setsockopt(zmq.RCVHWM, QUEUED_MESSAGES)


def bind_router(context: zmq.Context[zmq.Socket[bytes]], endpoint: str) -> zmq.Socket[bytes]:
    """Returns a ROUTER that raises zmq.ZMQError (EHOSTUNREACH) when a peer is not there, and drops nothing silently."""
    socket = context.socket(zmq.ROUTER)
    _options(socket)
    socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
    socket.setsockopt(zmq.ROUTER_HANDOVER, 1)
    socket.bind(endpoint)
    return socket


def connect_dealer(context: zmq.Context[zmq.Socket[bytes]], endpoint: str, identity: str) -> zmq.Socket[bytes]:
    """Returns a DEALER. It is of the context's kind, so contexts of zmq.asyncio work, too."""
    socket = context.socket(zmq.DEALER)
    _options(socket)
    socket.setsockopt(zmq.IDENTITY, identity.encode())
    socket.connect(endpoint)
    return socket
