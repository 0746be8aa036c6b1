"""Signals to other processes: none is lost because it was ignored from the start, none hits a process by accident."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterable


def default_dispositions(numbers: Iterable[signal.Signals]) -> None:
    """Ends the ignoring of these signals in this process, and so in the children that it starts from now on."""
    for number in numbers:
        if signal.getsignal(number) is signal.SIG_IGN:
            handler = signal.default_int_handler if number is signal.SIGINT else signal.SIG_DFL
            signal.signal(number, handler)


def send_signal(pid: int, number: signal.Signals, still_it: Callable[[], bool]) -> bool:
    """Sends the signal to the very process that `still_it` confirms; False: it is gone.

    The process is held by a pidfd before it is confirmed, so its number can't have gone to another one meanwhile.
    """
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return False
    try:
        if not still_it():
            return False
        signal.pidfd_send_signal(handle, number)
    except ProcessLookupError:
        return False
    finally:
        os.close(handle)
    return True
