"""The server that is simulated."""

from __future__ import annotations

from dataclasses import dataclass

from semipd.core.partition import FULL, Shares
from semipd.core.snapshot import Limits
from semipd.profiles.profile import Overheads


@dataclass(frozen=True, slots=True)
class SimSettings:
    """The settings of a simulated server; they mean what the options of `semipd serve` of the same names mean."""

    pages: int
    """Pages in the pool."""
    limits: Limits
    """The limits of its engine, as policies see them."""
    overheads: Overheads
    """Seconds that a token pays beside the device."""
    max_waiting: int = 512
    """Sequences in the queue; beyond, requests are refused."""
    shares: Shares = FULL
    """The shares until a policy asks for others."""
