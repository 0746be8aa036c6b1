"""The exit codes of the commands."""

from __future__ import annotations

OK = 0
FAILED = 1
USAGE = 2
UNREACHABLE = 3
"""No server answers at the address."""
INTERRUPTED = 130
"""Ctrl-C."""
