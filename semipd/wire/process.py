"""Functions with which a process of the server arranges its end, its sleeps and its memory."""

from __future__ import annotations

import ctypes
import gc
import os
import signal

PR_SET_PDEATHSIG = 1
PR_SET_TIMERSLACK = 29
SLACK_NS = 1000

EXIT_DEVICE_FAILED = 86
"""Exit code of a worker whose device failed. Under MPS the contexts of the other workers are lost with this one's."""

PARENT = "SEMIPD_PARENT"
"""Environment variable: the process id of the coordinator, to the processes that it starts."""


def started_by() -> int | None:
    """Returns the coordinator's process id; None: the coordinator did not start this process."""
    number = os.environ.get(PARENT, "")
    return int(number) if number.isdecimal() else None


def sleep_exactly() -> None:
    """Asks the kernel to end this thread's sleeps within SLACK_NS of their end, and not 50 us later as usual.

    A thread that polls a device with short sleeps hears of it that much sooner. Only Linux can do it; elsewhere the
    call has no effect.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if hasattr(libc, "prctl") and libc.prctl(PR_SET_TIMERSLACK, SLACK_NS, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_TIMERSLACK)")


def freeze_start_up_objects() -> None:
    """Takes what is there now (modules, configuration, the engine) out of the garbage collector's sight for good.

    None of it becomes garbage. A full collection, which may come at any time, would go through all of it while a
    request or the device waits: some 200,000 objects, and 50 ms or more, in a process that has imported torch. This
    function collects once, so that garbage is not kept; a second call goes only through what was made since the first.
    Call it when nobody waits for this process, or as the last step before it says that it is ready.
    """
    gc.collect()
    gc.freeze()


def die_with_parent(parent: int | None = None, by: signal.Signals = signal.SIGKILL) -> None:
    """Asks the kernel to end this process when its parent's starting thread ends. Only Linux can do it; elsewhere the
    call has no effect.

    `parent`: the parent's pid, if the caller knows it from before. If that process is dead by now, this one ends at
    once. Signals that a terminal sends to the whole group (Ctrl-C) are left to the parent.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    libc = ctypes.CDLL(None, use_errno=True)
    if hasattr(libc, "prctl") and libc.prctl(PR_SET_PDEATHSIG, by, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if parent is not None and os.getppid() != parent:
        os._exit(1)
