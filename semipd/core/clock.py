"""Time as a value that tests control."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """Tells seconds, which only rise. Their zero is arbitrary, but the same in every process of a machine."""

    def now(self) -> float: ...


class SystemClock:
    """Tells CLOCK_MONOTONIC, which processes of one machine can compare."""

    def now(self) -> float:
        return time.monotonic()


class ManualClock:
    """Stands still until `advance`; for tests and the simulator."""

    def __init__(self, start: float = 0.0) -> None:
        self._now = start

    def now(self) -> float:
        return self._now

    def advance(self, seconds: float) -> None:
        if seconds < 0:
            raise ValueError(f"a clock only rises; got {seconds} s")
        self._now += seconds
