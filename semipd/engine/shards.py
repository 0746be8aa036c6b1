"""Reads safetensors files: finds which tensors they hold, and where."""

from __future__ import annotations

import json
import os
import struct
from contextlib import ExitStack
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from semipd.core.errors import CheckpointError

TYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor's place in an open file."""

    fd: int
    offset: int
    """Bytes from the start of the file."""
    shape: tuple[int, ...]
    dtype: torch.dtype | str
    """The type; its name where torch has no such type."""


class Shard:
    """An open safetensors file."""

    def __init__(self, opened: ExitStack, path: Path) -> None:
        """Opens the file, which `opened` closes. Raises CheckpointError."""
        self.path = path
        try:
            self._file = opened.enter_context(safe_open(path, framework="pt"))
            self.names: list[str] = sorted(self._file.keys())
        except (OSError, SafetensorError) as error:
            raise self._unreadable(error) from error

    def tensor(self, name: str) -> torch.Tensor:
        """Reads a tensor to the CPU. Raises CheckpointError."""
        try:
            read: torch.Tensor = self._file.get_tensor(name)
        except (OSError, SafetensorError, RuntimeError) as error:
            raise CheckpointError(f"{self.path.name}: {name} cannot be read: {error}") from error
        return read

    def stored(self, opened: ExitStack) -> dict[str, StoredTensor]:
        """Returns where the tensors lie. `opened` closes the descriptor. Raises CheckpointError.

        safetensors has validated the header when the file was opened. If the file has been exchanged since, an entry
        that lies outside it is refused.
        """
        try:
            fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
            opened.callback(os.close, fd)
            size = os.fstat(fd).st_size
            (length,) = struct.unpack("<Q", os.pread(fd, 8, 0))
            header = json.loads(os.pread(fd, min(length, size), 8))
            found = {name: _stored(fd, 8 + length, size, header[name]) for name in self.names}
        except (OSError, ValueError, KeyError, TypeError, struct.error) as error:
            raise self._unreadable(error) from error
        return found

    def _unreadable(self, error: Exception) -> CheckpointError:
        return CheckpointError(f"{self.path.name}: cannot be read as safetensors: {error}")


def _stored(fd: int, data: int, size: int, entry: dict[str, Any]) -> StoredTensor:
    """Reads an entry of the header. `data`: where the tensors begin, in bytes from the start of the file.

    Raises ValueError, KeyError or TypeError for an entry that is not valid.
    """
    shape = tuple(int(n) for n in entry["shape"])
    first, end = (int(place) for place in entry["data_offsets"])
    name = str(entry["dtype"])
    dtype = TYPES.get(name, name)
    if not 0 <= first <= end <= size - data:
        raise ValueError(f"bytes {first} to {end} lie outside the file")
    if isinstance(dtype, torch.dtype) and end - first != prod(shape) * dtype.itemsize:
        raise ValueError(f"{end - first} bytes for {list(shape)} of {name}")
    return StoredTensor(fd, data + first, shape, dtype)
