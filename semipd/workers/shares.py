"""Keeps a worker within the CPUs that it was granted."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence

from semipd.engine.cpu import set_threads
from semipd.internal.v1 import worker_pb2 as wk
from semipd.workers.link import Link


def compute_on(cpus: Sequence[int]) -> None:
    """Moves every thread of this process to these CPUs, and computes with as many threads. Empty: as it is.

    Threads that a library starts later inherit the CPUs of the thread that starts them.
    """
    if not cpus:
        return
    for thread in os.listdir("/proc/self/task"):
        with contextlib.suppress(ProcessLookupError):  # a thread may end while we go through them
            os.sched_setaffinity(int(thread), cpus)
    set_threads(len(cpus))


def apply(message: wk.SetShares, link: Link) -> None:
    """To be called between two steps."""
    compute_on(message.cpus)
    link.send(wk.FromWorker(shares_applied=wk.SharesApplied(change=message.change)))
