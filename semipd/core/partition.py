"""The parts of the device that the two phases compute on."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Phase(Enum):
    """The two phases of a request: its prompt is computed, then its tokens one by one."""

    PREFILL = "prefill"
    DECODE = "decode"


@dataclass(frozen=True, slots=True)
class Shares:
    """The paper's (x, y): percent of the device that prefill and decode may use.

    Each is above 0 and at most 100; together they may exceed 100, and then the phases compete (semi-PD, section 4.3).
    """

    prefill: float
    decode: float

    def __post_init__(self) -> None:
        for name, percent in (("prefill", self.prefill), ("decode", self.decode)):
            if not 0 < percent <= 100:
                raise ValueError(f"{name}: the share must be above 0 and at most 100 percent, got {percent}")

    def of(self, phase: Phase) -> float:
        """Returns a phase's share in percent."""
        return self.prefill if phase is Phase.PREFILL else self.decode


FULL = Shares(100.0, 100.0)
"""Both phases may use the whole device, and compete for it."""


class Mode(Enum):
    """The way in which the two phases use the device."""

    SPLIT = "split"
    """Both compute at once, each within its share."""
    TURNS = "turns"
    """They take turns, each on the whole device."""
    MIXED = "mixed"
    """Decode tokens and prompt chunks are in one batch (Sarathi-Serve)."""
