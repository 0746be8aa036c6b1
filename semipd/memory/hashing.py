"""One hash for a set of weights. It tells a worker, or a person, which weights are in memory."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch

from semipd.memory.manifest import TensorEntry


def host_bytes(tensor: torch.Tensor) -> Iterable[memoryview]:
    """Yields the bytes of a contiguous tensor on the CPU, without a copy."""
    yield tensor.view(-1).view(torch.uint8).numpy().data


def content_hash(
    weights: Mapping[str, torch.Tensor],
    progress: Callable[[int, int], None] = lambda done, total: None,
    fetch: Callable[[torch.Tensor], Iterable[memoryview]] = host_bytes,
) -> str:
    """Returns the SHA-256 over each tensor's name, shape, type and the SHA-256 of its bytes.

    It is the same for the same weights on any device. Tensors are hashed side by side. `fetch` brings a tensor's bytes
    to the host, piece after piece; several threads call it at once. `progress` is told bytes done and bytes in all.
    """

    def digest(tensor: torch.Tensor) -> bytes:
        found = hashlib.sha256()
        for piece in fetch(tensor):
            found.update(piece)
        return found.digest()

    whole = hashlib.sha256()
    done, total = 0, sum(tensor.nbytes for tensor in weights.values())
    with ThreadPoolExecutor() as threads:
        # The largest goes first: alone at the end, an embedding would keep one thread busy and all others idle.
        largest_first = sorted(weights, key=lambda name: weights[name].nbytes, reverse=True)
        parts = {name: threads.submit(digest, weights[name]) for name in largest_first}
        for name, tensor in weights.items():
            part = parts[name].result()
            whole.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode() + part)
            done += tensor.nbytes
            progress(done, total)
    return whole.hexdigest()


def dummy_hash(entries: Sequence[TensorEntry], seed: int) -> str:
    """Returns the SHA-256 over the seed and each tensor's name, shape and type, for dummy weights.

    Their bytes follow from these, so hashing gigabytes of them would tell nothing more. It never equals a
    `content_hash`.
    """
    whole = hashlib.sha256(f"dummy weights of seed {seed}\n".encode())
    for entry in entries:
        whole.update(f"{entry.name} {entry.shape} {entry.dtype}\n".encode())
    return whole.hexdigest()
