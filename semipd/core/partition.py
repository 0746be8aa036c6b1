"""Who computes on how much of the device."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


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


FULL = Shares(100.0, 100.0)


class Phase(Enum):
    PREFILL = "prefill"
    DECODE = "decode"


class Mode(Enum):
    """How the two phases use the device."""

    SPLIT = "split"
    """Side by side, each within its share."""
    TURNS = "turns"
    """One at a time, each on the whole device."""
    MIXED = "mixed"
    """Decode tokens and prompt chunks in one batch (Sarathi-Serve)."""
