"""Errors that end a benchmark without a report; each knows the exit code of the command.

BenchError
├── InputError      2: an option, a trace or a saved report that can't be used
├── Unreachable     3: nobody answers at the target
└── RunFailed       1: the target answers, but not with tokens; or a load process died
"""

from __future__ import annotations


class BenchError(Exception):
    """The message is for the person at the terminal."""

    exit_code = 1


class InputError(BenchError):
    exit_code = 2


class Unreachable(BenchError):
    exit_code = 3


class RunFailed(BenchError):
    exit_code = 1
