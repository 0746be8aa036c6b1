"""Makes torch tensors over arenas: views, never copies."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from math import prod

import torch
from torch.utils.dlpack import from_dlpack

from semipd.memory.device_arena import DeviceArena
from semipd.memory.manifest import Arena, PoolLayout, TensorEntry

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
ALIGNMENT = 256
"""Bytes between the starts of tensors are a multiple of it. Vector loads on any device want that."""


def lay_out(tensors: Sequence[tuple[str, tuple[int, ...], str]]) -> tuple[tuple[TensorEntry, ...], int]:
    """Places tensors, given as (name, shape, dtype), one after another.

    Returns their entries, and the number of bytes in all.
    """
    entries, offset = [], 0
    for name, shape, dtype in tensors:
        entries.append(TensorEntry(name, shape, dtype, offset))
        size = prod(shape) * DTYPES[dtype].itemsize
        offset += -(-size // ALIGNMENT) * ALIGNMENT
    return tuple(entries), offset


def weights_over(arena: Arena, entries: Sequence[TensorEntry]) -> dict[str, torch.Tensor]:
    """Returns the weights by name, on the arena's device.

    Where the arena is shared memory that is not writable, a write to them ends the process.
    """
    whole = _bytes_of(arena)

    def view(e: TensorEntry) -> torch.Tensor:
        size = prod(e.shape) * DTYPES[e.dtype].itemsize
        return whole[e.offset : e.offset + size].view(DTYPES[e.dtype]).view(e.shape)

    return {e.name: view(e) for e in entries}


def pool_over(arena: Arena, layout: PoolLayout) -> torch.Tensor:
    """Returns the pool, [layers, pages, 2, page_size, kv_heads, head_dim], on the arena's device."""
    return _bytes_of(arena)[: pool_bytes(layout)].view(DTYPES[layout.dtype]).view(layout.shape)


def pool_bytes(layout: PoolLayout) -> int:
    return prod(layout.shape) * DTYPES[layout.dtype].itemsize


def _bytes_of(arena: Arena) -> torch.Tensor:
    """Returns the arena as uint8, [bytes]: a type that every array library knows, as it does not know bfloat16."""
    if isinstance(arena, DeviceArena):
        return _device_bytes_of(arena)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given buffer is not writable")  # as it should be
        return torch.frombuffer(arena.buffer, dtype=torch.uint8, count=arena.bytes)


def _device_bytes_of(arena: DeviceArena) -> torch.Tensor:
    import cupy  # noqa: PLC0415 - it was loaded when the arena was opened

    memory = cupy.cuda.UnownedMemory(arena.address, arena.bytes, arena, 0)
    array = cupy.ndarray((arena.bytes,), cupy.uint8, cupy.cuda.MemoryPointer(memory, 0))
    return from_dlpack(array)
