"""What the resident has in its arenas, and how it is handed to another process.

On the socket: a 4-byte big-endian length, the manifest, and with its first byte the arenas' file descriptors.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Collection, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from google.protobuf.message import DecodeError

from semipd.core.errors import SemipdError
from semipd.internal.v1 import resident_pb2 as pb
from semipd.memory.arenas import SharedArena

WEIGHTS, POOL, ACCOUNT = "weights", "pool", "account"
MAX_ARENAS = 16
RECEIVE_S = 10.0


class HandOverFailed(SemipdError):
    """The resident is not there, or what it sent is no manifest."""


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """Where a weight lies in the weights arena."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    offset: int
    """Bytes."""


@dataclass(frozen=True, slots=True)
class PoolLayout:
    """[layers, pages, keys and values, tokens of a page, KV heads, head_dim]."""

    pages: int
    page_size: int
    layers: int
    kv_heads: int
    head_dim: int
    dtype: str

    @property
    def shape(self) -> tuple[int, int, int, int, int, int]:
        return (self.layers, self.pages, 2, self.page_size, self.kv_heads, self.head_dim)


@dataclass(frozen=True, slots=True)
class Manifest:
    content_hash: str
    """SHA-256 of the weights as they are laid out, hexadecimal."""
    arenas: tuple[tuple[str, int], ...]
    """Name and bytes, in the order of the descriptors."""
    tensors: tuple[TensorEntry, ...]
    pool: PoolLayout

    def to_wire(self) -> pb.Manifest:
        pool = self.pool
        return pb.Manifest(
            content_hash=self.content_hash,
            arenas=[pb.Arena(name=name, bytes=size, descriptor=n) for n, (name, size) in enumerate(self.arenas)],
            tensors=[pb.TensorEntry(name=t.name, shape=t.shape, dtype=t.dtype, offset=t.offset) for t in self.tensors],
            pool=pb.PoolLayout(
                pages=pool.pages,
                page_size=pool.page_size,
                layers=pool.layers,
                kv_heads=pool.kv_heads,
                head_dim=pool.head_dim,
                dtype=pool.dtype,
            ),
        )

    @classmethod
    def from_wire(cls, m: pb.Manifest) -> Manifest:
        p = m.pool
        return cls(
            content_hash=m.content_hash,
            arenas=tuple((a.name, a.bytes) for a in sorted(m.arenas, key=lambda a: a.descriptor)),
            tensors=tuple(TensorEntry(t.name, tuple(t.shape), t.dtype, t.offset) for t in m.tensors),
            pool=PoolLayout(p.pages, p.page_size, p.layers, p.kv_heads, p.head_dim, p.dtype),
        )


def send(connection: socket.socket, manifest: Manifest, arenas: Sequence[SharedArena]) -> None:
    """Hands everything to whoever is at the other end."""
    message = manifest.to_wire().SerializeToString()
    framed = struct.pack(">I", len(message)) + message
    sent = socket.send_fds(connection, [framed], [arena.fd for arena in arenas])
    if sent < len(framed):
        connection.sendall(framed[sent:])


def receive(
    stack: ExitStack, path: Path, only: Collection[str] = (WEIGHTS, POOL, ACCOUNT)
) -> tuple[Manifest, dict[str, SharedArena]]:
    """Connects to the resident and maps those of its arenas that `only` names; `stack` closes them.

    The weights can't be written to. Raises HandOverFailed.
    """
    with ExitStack() as descriptors:
        message, fds = _receive(path, descriptors)
        try:
            manifest = Manifest.from_wire(pb.Manifest.FromString(message))
        except DecodeError as error:
            raise HandOverFailed("what the resident sent is no manifest") from error
        if len(fds) != len(manifest.arenas):
            raise HandOverFailed(f"{len(manifest.arenas)} arenas were announced, and {len(fds)} descriptors came")
        arenas = {}
        for (name, size), fd in zip(manifest.arenas, fds, strict=True):
            if name in only:
                arenas[name] = stack.enter_context(SharedArena(name, os.dup(fd), size, writable=name != WEIGHTS))
    return manifest, arenas


def _receive(path: Path, descriptors: ExitStack) -> tuple[bytes, list[int]]:
    """The message and the file descriptors, which `descriptors` closes."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(RECEIVE_S)
            connection.connect(str(path))
            data, fds, _flags, _address = socket.recv_fds(connection, 1 << 16, MAX_ARENAS, socket.MSG_CMSG_CLOEXEC)
            for fd in fds:
                descriptors.callback(os.close, fd)
            while len(data) < 4 or len(data) < 4 + struct.unpack(">I", data[:4])[0]:
                more = connection.recv(1 << 16)
                if not more:
                    raise HandOverFailed("the resident ended while it sent its manifest")
                data += more
    except OSError as error:
        raise HandOverFailed(f"the resident can't be reached: {error}") from error
    return data[4:], fds
