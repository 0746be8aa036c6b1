"""The manifest says what the resident has in its arenas, and how another process maps them.

The resident sends on its socket a 4-byte big-endian length, then the manifest. With the first byte come the file
descriptors of the arenas in shared memory. The manifest itself names an arena on a GPU by its CUDA IPC handle.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from google.protobuf.message import DecodeError

from semipd.core.errors import SemipdError, StartError
from semipd.internal.v1 import resident_pb2 as pb
from semipd.memory.arenas import SharedArena
from semipd.memory.device_arena import HANDLE_BYTES, DeviceArena

Arena = SharedArena | DeviceArena

WEIGHTS, POOL, ACCOUNT, CONTROL = "weights", "pool", "account", "control"
MAX_ARENAS = 16
RECEIVE_S = 10.0
"""Seconds to wait for the resident's message."""


class HandOverFailed(SemipdError):
    """The resident is not there, or what it sent is no manifest."""


@dataclass(frozen=True, slots=True)
class ArenaEntry:
    """One arena of the resident."""

    name: str
    size: int
    """Bytes."""
    cuda_ipc: bytes = b""
    """The handle of GPU memory; empty: shared memory, whose descriptor comes with the message."""

    @classmethod
    def of(cls, arena: Arena) -> ArenaEntry:
        return cls(arena.name, arena.bytes, arena.handle if isinstance(arena, DeviceArena) else b"")


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """One weight, and where it lies in the weights arena."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    offset: int
    """Bytes."""


@dataclass(frozen=True, slots=True)
class PoolLayout:
    """Shape of the KV pool: [layers, pages, keys and values, tokens of a page, KV heads, head_dim]."""

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
    """Everything that the resident has."""

    content_hash: str
    """SHA-256 of the weights as they are laid out, or of how dummy weights are made; hexadecimal."""
    arenas: tuple[ArenaEntry, ...]
    """Those in shared memory are in the order of their descriptors."""
    tensors: tuple[TensorEntry, ...]
    pool: PoolLayout

    def to_wire(self) -> pb.Manifest:
        pool = self.pool
        return pb.Manifest(
            content_hash=self.content_hash,
            arenas=self._arenas_to_wire(),
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

    def _arenas_to_wire(self) -> list[pb.Arena]:
        descriptors = count()
        return [
            pb.Arena(name=a.name, bytes=a.size, cuda_ipc=a.cuda_ipc)
            if a.cuda_ipc
            else pb.Arena(name=a.name, bytes=a.size, descriptor=next(descriptors))
            for a in self.arenas
        ]

    @classmethod
    def from_wire(cls, m: pb.Manifest) -> Manifest:
        """Reads a manifest. Raises HandOverFailed for an arena that it does not describe well enough to find it."""
        p = m.pool
        return cls(
            content_hash=m.content_hash,
            arenas=_arenas_from_wire(m),
            tensors=tuple(TensorEntry(t.name, tuple(t.shape), t.dtype, t.offset) for t in m.tensors),
            pool=PoolLayout(p.pages, p.page_size, p.layers, p.kv_heads, p.head_dim, p.dtype),
        )


def _arenas_from_wire(m: pb.Manifest) -> tuple[ArenaEntry, ...]:
    descriptors = count()
    for arena in m.arenas:
        kind = arena.WhichOneof("handle")
        if kind is None or (kind == "descriptor" and arena.descriptor != next(descriptors)):
            raise HandOverFailed(f"arena {arena.name!r} came without a descriptor or CUDA IPC handle of its own")
        if kind == "cuda_ipc" and len(arena.cuda_ipc) != HANDLE_BYTES:
            raise HandOverFailed(
                f"arena {arena.name!r}: a CUDA IPC handle has {HANDLE_BYTES} bytes, and {len(arena.cuda_ipc)} came"
            )
    return tuple(ArenaEntry(a.name, a.bytes, a.cuda_ipc) for a in m.arenas)


def send(connection: socket.socket, manifest: Manifest, arenas: Sequence[Arena]) -> None:
    """Sends everything to the process at the other end. `arenas`: those of the manifest, in its order."""
    message = manifest.to_wire().SerializeToString()
    framed = struct.pack(">I", len(message)) + message
    descriptors = [arena.fd for arena in arenas if isinstance(arena, SharedArena)]
    sent = socket.send_fds(connection, [framed], descriptors)
    if sent < len(framed):
        connection.sendall(framed[sent:])


def receive(
    stack: ExitStack, path: Path, only: Collection[str] = (WEIGHTS, POOL, ACCOUNT, CONTROL)
) -> tuple[Manifest, dict[str, Arena]]:
    """Connects to the resident and maps those of its arenas that `only` names; `stack` closes them.

    Weights in shared memory can't be written to; those on a GPU can (CUDA knows no read-only mapping). A process that
    asks for nothing on a GPU loads nothing of CUDA. Raises HandOverFailed, also where an arena can't be mapped.
    """
    with ExitStack() as descriptors:
        message, fds = _receive(path, descriptors)
        try:
            manifest = Manifest.from_wire(pb.Manifest.FromString(message))
        except DecodeError as error:
            raise HandOverFailed("what the resident sent is no manifest") from error
        announced = [entry.name for entry in manifest.arenas if not entry.cuda_ipc]
        if len(fds) != len(announced):
            raise HandOverFailed(f"{len(announced)} arenas were announced, and {len(fds)} descriptors came")
        missing = sorted(set(only) - {entry.name for entry in manifest.arenas})
        if missing:
            raise HandOverFailed(f"the resident has no arena {missing[0]!r}")
        fd_of = dict(zip(announced, fds, strict=True))
        arenas: dict[str, Arena] = {}
        for entry in manifest.arenas:
            if entry.name in only:
                arenas[entry.name] = arena = _map(entry, fd_of)
                stack.push(arena)
    return manifest, arenas


def _map(entry: ArenaEntry, fd_of: Mapping[str, int]) -> Arena:
    try:
        if entry.cuda_ipc:
            return DeviceArena.open(entry.name, entry.cuda_ipc, entry.size)
        return SharedArena(entry.name, os.dup(fd_of[entry.name]), entry.size, writable=entry.name != WEIGHTS)
    except StartError as error:
        raise HandOverFailed(str(error)) from error


def shared(arenas: Mapping[str, Arena], name: str) -> SharedArena:
    """Returns the arena of that name. Raises HandOverFailed where it is not shared memory."""
    arena = arenas[name]
    if not isinstance(arena, SharedArena):
        raise HandOverFailed(f"arena {name!r} must be shared memory, and is on a GPU")
    return arena


def _receive(path: Path, descriptors: ExitStack) -> tuple[bytes, list[int]]:
    """Returns the message and the file descriptors, which `descriptors` closes."""
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
