"""Keeps a worker within the CPUs that it was granted."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence

from semipd.core.model import ModelConfig
from semipd.engine.cpu import set_threads

WEIGHTS_A_THREAD = 20_000_000
"""Below so many weights for each, threads spend longer waiting for each other than they save, and the gateway and the
coordinator want those CPUs too."""


class Shares:
    """This process's threads, and what they compute for."""

    def __init__(self, model: ModelConfig) -> None:
        self._most = max(1, model.parameters // WEIGHTS_A_THREAD)

    def compute_on(self, cpus: Sequence[int]) -> None:
        """Moves every thread of this process to these CPUs, between two steps. Empty: all that it may use.

        Threads that a library starts later inherit the CPUs of the thread that starts them.
        """
        if not cpus:
            cpus = sorted(os.sched_getaffinity(0))
        for thread in os.listdir("/proc/self/task"):
            with contextlib.suppress(ProcessLookupError):  # a thread may end while we go through them
                os.sched_setaffinity(int(thread), cpus)
        set_threads(min(len(cpus), self._most))
