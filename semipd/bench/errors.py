"""Errors that end a benchmark without a report: those of every command, and one of its own.

CommandError (semipd.core.errors)
├── InputError      2: an option, a trace or a saved report that can't be used
├── Unreachable     3: nobody answers at the target
└── RunFailed       1: the target answers, but not with tokens; or a load process died
"""

from __future__ import annotations

from semipd.core.errors import CommandError, InputError, RunFailed

__all__ = ["CommandError", "InputError", "RunFailed", "Unreachable"]


class Unreachable(CommandError):
    """Nobody answers at the target."""

    exit_code = 3
