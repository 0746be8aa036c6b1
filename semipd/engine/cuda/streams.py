"""Streams that compute on a part of the device: green contexts, and one stream on all of it.

Work goes to one lane at a time; changing the lane is an event between two streams, microseconds, at any pass
(CUDA driver API, Green Contexts; a stream of a green context runs its kernels on that context's SMs alone, also within
an MPS client that has all of them). A graph keeps the SMs of the lane that it was captured on.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import Enum
from typing import Any

import torch

MOST_PRIORITY = -5


class SmSide(Enum):
    """Which of the device's SMs a share is of: phases at different ends don't touch where there is room for both."""

    FIRST = "first"
    LAST = "last"


class Streams:
    """`all` is the number of SMs of the device, and the lane of that name has no green context."""

    def __init__(
        self, device: torch.device, side: SmSide, choices: Sequence[int] = (), *, urgent: bool = False
    ) -> None:
        """Streams for as many SMs as `choices` say, on that side of the device, and for all.

        `urgent`: its kernels come before those of other processes where the device has a choice. Raises RuntimeError
        where the driver has no green contexts or refuses them.
        """
        self.device = device
        self.all = torch.cuda.get_device_properties(device).multi_processor_count
        self._priority = MOST_PRIORITY if urgent else 0
        self._streams: dict[int, torch.cuda.Stream] = {self.all: torch.cuda.Stream(device, priority=self._priority)}
        self._contexts: list[Any] = []  # destroyed with the process
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
        """The choice that is meant by a number of SMs; 0 or less: all."""
        return self.all if sms <= 0 else min(self._streams, key=lambda c: (abs(c - sms), c))

    def use(self, sms: int) -> None:
        """Work that is launched from now on runs after all before, on the lane of so many SMs."""
        if sms != self._current:
            self._moved.record(self._streams[self._current])
            self._streams[sms].wait_event(self._moved)
            self._current = sms

    @property
    def stream(self) -> torch.cuda.Stream:
        return self._streams[self._current]

    @contextmanager
    def on(self) -> Iterator[None]:
        """Launches go to the current lane."""
        with torch.cuda.stream(self._streams[self._current]):
            yield

    def _green(self, count: int, side: SmSide) -> torch.cuda.Stream:
        from cuda.bindings import driver  # noqa: PLC0415  not there without a GPU

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
    """What a driver call returned besides its code. Raises RuntimeError with the code's name."""
    code, *values = answer
    if int(code) != 0:
        raise RuntimeError(f"green contexts: the driver says {code.name}")
    return values[0] if len(values) == 1 else tuple(values)
