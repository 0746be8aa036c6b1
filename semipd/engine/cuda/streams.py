"""Streams that compute on a part of the device: green contexts, and one stream on all of it.

A stream of a green context runs its kernels on that context's SMs only, also within an MPS client that has all SMs
(CUDA driver API, Green Contexts). Work goes to one stream at a time. The stream may change before any pass: the change
is an event between two streams, and takes microseconds. A graph keeps the SMs of the stream on which it was captured.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import Enum
from typing import Any

import torch

MOST_PRIORITY = -5


class SmSide(Enum):
    """The end of the device from which a share's SMs are taken.

    Phases at different ends do not overlap where there is room for both.
    """

    FIRST = "first"
    LAST = "last"


class Streams:
    """Streams by their number of SMs.

    `all` is the number of SMs of the device. Its stream has no green context.
    """

    def __init__(
        self, device: torch.device, side: SmSide, choices: Sequence[int] = (), *, urgent: bool = False
    ) -> None:
        """Makes a stream for each number of SMs in `choices`, at that side of the device, and one for all SMs.

        `urgent`: its kernels come before those of other processes where the device has a choice. Raises RuntimeError
        where the driver has no green contexts or refuses them.
        """
        self.device = device
        self.all = torch.cuda.get_device_properties(device).multi_processor_count
        self._priority = MOST_PRIORITY if urgent else 0
        self._streams: dict[int, torch.cuda.Stream] = {self.all: torch.cuda.Stream(device, priority=self._priority)}
        self._contexts: list[Any] = []  # they are destroyed with the process
        for count in sorted({c for c in choices if c < self.all}):
            self._streams[count] = self._green(count, side)
        self._current = self.all
        self._moved = torch.cuda.Event()

    def choices(self) -> tuple[int, ...]:
        return tuple(sorted(self._streams))

    @property
    def current(self) -> int:
        return self._current

    def nearest(self, sms: int) -> int:
        """Returns the available number of SMs nearest to `sms`; 0 or less stands for all."""
        return self.all if sms <= 0 else min(self._streams, key=lambda c: (abs(c - sms), c))

    def use(self, sms: int) -> None:
        """Selects the stream of `sms` SMs. Work that is launched from now on runs there, after all work before."""
        if sms != self._current:
            self._moved.record(self._streams[self._current])
            self._streams[sms].wait_event(self._moved)
            self._current = sms

    @property
    def stream(self) -> torch.cuda.Stream:
        return self._streams[self._current]

    @contextmanager
    def on(self) -> Iterator[None]:
        """Makes the selected stream the current one inside `with`."""
        with torch.cuda.stream(self._streams[self._current]):
            yield

    def _green(self, count: int, side: SmSide) -> torch.cuda.Stream:
        from cuda.bindings import driver  # noqa: PLC0415  not installed without a GPU

        torch.cuda.init()
        device = _done(driver.cuDeviceGet(self.device.index or 0))
        whole = _done(driver.cuDeviceGetDevResource(device, driver.CUdevResourceType.CU_DEV_RESOURCE_TYPE_SM))
        group = count if side is SmSide.FIRST else self.all - count
        parts, _, rest = _done(driver.cuDevSmResourceSplitByCount(1, whole, 0, group))
        description = _done(driver.cuDevResourceGenerateDesc([parts[0] if side is SmSide.FIRST else rest], 1))
        context = _done(
            driver.cuGreenCtxCreate(description, device, driver.CUgreenCtxCreate_flags.CU_GREEN_CTX_DEFAULT_STREAM)
        )
        stream = _done(
            driver.cuGreenCtxStreamCreate(context, driver.CUstream_flags.CU_STREAM_NON_BLOCKING, self._priority)
        )
        self._contexts.append(context)
        return torch.cuda.ExternalStream(int(stream), device=self.device)


def _done(answer: tuple[Any, ...]) -> Any:
    """Returns what a driver call returned besides its code. Raises RuntimeError with the code's name."""
    code, *values = answer
    if int(code) != 0:
        raise RuntimeError(f"green contexts: the driver says {code.name}")
    return values[0] if len(values) == 1 else tuple(values)
