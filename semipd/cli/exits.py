"""How a command ends."""

from __future__ import annotations

OK = 0
FAILED = 1
USAGE = 2
UNREACHABLE = 3
"""Nobody answers at the address."""
INTERRUPTED = 130
"""Ctrl-C."""
