from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class State(StrEnum):
    GOOD = "good"
    LESS = "less"
    """The server runs, with less than it could."""
    NEEDLESS = "needless"
    """It is absent, and nothing here would use it."""
    BAD = "bad"
    """The server can't run."""


@dataclass(frozen=True, slots=True)
class Finding:
    name: str
    state: State
    value: str
    """The value that was found."""
    consequence: str
    """The consequence for the server, and what to do about it."""
