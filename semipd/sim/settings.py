"""The server that is simulated."""

from __future__ import annotations

from dataclasses import dataclass

from semipd.core.partition import FULL, Shares
from semipd.core.snapshot import Limits
from semipd.profiles.profile import Overheads


@dataclass(frozen=True, slots=True)
class SimSettings:
    """The settings of a simulated server, as the options of `semipd serve`."""

    pages: int
    """Pages in the pool."""
    limits: Limits
    """What its engine can take; policies see it."""
    overheads: Overheads
    """What a token pays beside the device."""
    max_waiting: int = 512
    """Sequences in the queue; beyond, requests are refused."""
    shares: Shares = FULL
    """The shares until a policy asks for others."""
