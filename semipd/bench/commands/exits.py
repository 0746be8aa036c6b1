"""Ends a command: a failure is one clear message and an exit code, never a traceback and never a report."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import typer

from semipd.bench.errors import CommandError

FAILED = 1
"""An invalid run, a search that found nothing, or a target that fails."""
INTERRUPTED = 130
"""Ctrl-C, as a shell says it of a process that a signal ended."""


@contextmanager
def errors_as_messages() -> Iterator[None]:
    """Ends the command with the error's sentence and exit code."""
    try:
        yield
    except CommandError as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(error.exit_code) from None
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        raise typer.Exit(INTERRUPTED) from None
