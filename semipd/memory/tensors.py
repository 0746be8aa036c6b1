"""torch tensors over arenas: views, never copies."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from math import prod

import torch

from semipd.memory.arenas import SharedArena
from semipd.memory.manifest import PoolLayout, TensorEntry

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
ALIGNMENT = 256
"""Bytes; what vector loads on any device want."""


def lay_out(tensors: Sequence[tuple[str, tuple[int, ...], str]]) -> tuple[tuple[TensorEntry, ...], int]:
    """Places (name, shape, dtype) one after another; the entries, and the bytes in all."""
    entries, offset = [], 0
    for name, shape, dtype in tensors:
        entries.append(TensorEntry(name, shape, dtype, offset))
        size = prod(shape) * DTYPES[dtype].itemsize
        offset += -(-size // ALIGNMENT) * ALIGNMENT
    return tuple(entries), offset


def weights_over(arena: SharedArena, entries: Sequence[TensorEntry]) -> dict[str, torch.Tensor]:
    """Where the arena is not writable, whoever writes to them is ended."""

    def view(e: TensorEntry) -> torch.Tensor:
        flat = torch.frombuffer(arena.buffer, dtype=DTYPES[e.dtype], count=prod(e.shape), offset=e.offset)
        return flat.view(e.shape)

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given buffer is not writable")  # as it should be
        return {e.name: view(e) for e in entries}


def pool_over(arena: SharedArena, layout: PoolLayout) -> torch.Tensor:
    """[layers, pages, 2, page_size, kv_heads, head_dim]."""
    kind = DTYPES[layout.dtype]
    return torch.frombuffer(arena.buffer, dtype=kind, count=prod(layout.shape)).view(layout.shape)


def pool_bytes(layout: PoolLayout) -> int:
    return prod(layout.shape) * DTYPES[layout.dtype].itemsize


def content_hash(
    weights: Mapping[str, torch.Tensor], progress: Callable[[int, int], None] = lambda done, total: None
) -> str:
    """SHA-256 over each tensor's name, shape, type and the SHA-256 of its bytes; tensors are hashed side by side.

    `progress` is told bytes done and bytes in all.
    """

    def digest(tensor: torch.Tensor) -> bytes:
        return hashlib.sha256(tensor.view(-1).view(torch.uint8).numpy().data).digest()

    whole = hashlib.sha256()
    done, total = 0, sum(tensor.nbytes for tensor in weights.values())
    with ThreadPoolExecutor() as threads:
        for (name, tensor), part in zip(weights.items(), threads.map(digest, weights.values()), strict=True):
            whole.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode() + part)
            done += tensor.nbytes
            progress(done, total)
    return whole.hexdigest()
