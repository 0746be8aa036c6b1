"""Keeps a worker within the CPUs that it was granted."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence

from semipd.core.model import ModelConfig
from semipd.engine.cpu import set_threads
from semipd.memory.account import Role

WEIGHTS_A_THREAD = 20_000_000
"""Decoding takes a few tokens at a time through all the weights. Below so many weights for each, threads spend longer
waiting for each other than they save, and the gateway and the coordinator want those CPUs too."""
MANY = 1024
"""Threads: a prompt has work for all."""


class CpuAffinity:
    """This process's threads, and what they compute for."""

    def __init__(self, role: Role, model: ModelConfig) -> None:
        decoding = max(1, model.parameters // WEIGHTS_A_THREAD)
        self._most_threads = decoding if role is Role.DECODE else MANY

    def compute_on(self, cpus: Sequence[int]) -> None:
        """Moves every thread of this process to these CPUs, between two steps. Empty: all that it may use.

        Threads that a library starts later inherit the CPUs of the thread that starts them.
        """
        if not cpus:
            cpus = sorted(os.sched_getaffinity(0))
        for thread in os.listdir("/proc/self/task"):
            with contextlib.suppress(ProcessLookupError):  # a thread may end while we go through them
                os.sched_setaffinity(int(thread), cpus)
        set_threads(min(len(cpus), self._most_threads))
