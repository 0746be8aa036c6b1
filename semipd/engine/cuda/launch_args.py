"""The launch arguments of a pass: all numbers that the CPU sends, in one pinned buffer and one copy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

DEPTH = 8
"""The number of host buffers, which are used in turn. A pass takes two at most, and is begun while one other is on the
device, so none is overwritten before it is read."""

ArgFields = Mapping[str, tuple[tuple[int, ...], type[np.int32] | type[np.float32]]]
"""Shape and type of each array, by name. The last one may be sent in part."""


class LaunchArgs:
    """Named arrays of 4-byte numbers at fixed addresses on the device, which a captured graph may read."""

    def __init__(self, fields: ArgFields, device: torch.device) -> None:
        sizes = [int(np.prod(shape)) for shape, _ in fields.values()]
        ends = np.cumsum([-(-size // 4) * 4 for size in sizes])  # 16-byte alignment
        starts = [0, *ends[:-1].tolist()]
        self._begin_of_last = starts[-1]
        self._buffer = torch.zeros(int(ends[-1]), dtype=torch.int32, device=device)
        pinned = device.type == "cuda"
        self._hosts = [torch.zeros(int(ends[-1]), dtype=torch.int32, pin_memory=pinned) for _ in range(DEPTH)]
        self._turn = 0
        self._views: list[dict[str, npt.NDArray[Any]]] = [{} for _ in range(DEPTH)]
        self.device: dict[str, torch.Tensor] = {}
        for (name, (shape, kind)), start, size in zip(fields.items(), starts, sizes, strict=True):
            part = self._buffer[start : start + size].view(shape)
            self.device[name] = part.view(torch.float32) if kind is np.float32 else part
            for host, views in zip(self._hosts, self._views, strict=True):
                views[name] = host.numpy()[start : start + size].reshape(shape).view(kind)

    def next(self) -> dict[str, npt.NDArray[Any]]:
        """Returns the next host arrays to fill. They hold what an earlier pass left in them."""
        self._turn = (self._turn + 1) % DEPTH
        return self._views[self._turn]

    def send(self, of_last: int | None = None) -> None:
        """Copies the arrays that `next` returned last, on the current stream.

        `of_last`: how many numbers of the last array are copied; None: all.
        """
        end = len(self._buffer) if of_last is None else self._begin_of_last + of_last
        self._buffer[:end].copy_(self._hosts[self._turn][:end], non_blocking=True)
