"""A pulse that counts its beats."""

from __future__ import annotations


class CountedPulse:
    def __init__(self) -> None:
        self.beats = 0

    def beat(self) -> None:
        self.beats += 1

    def report(self) -> None: ...
