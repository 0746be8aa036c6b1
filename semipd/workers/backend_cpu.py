"""The back end of a worker that computes on CPUs: its share is a set of them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence

import torch

from semipd.core.model import ModelConfig
from semipd.engine.engine import CpuEngine
from semipd.internal.v1 import worker_pb2 as wk
from semipd.memory.account import Role
from semipd.workers.attach import AttachedMemory
from semipd.workers.backend import NoTurns
from semipd.workers.coordinator_link import CoordinatorLink

WEIGHTS_A_THREAD = 20_000_000
"""Weights per decode thread, at least. Decoding takes a few tokens at a time through all the weights. With fewer
weights for each, threads spend longer waiting for each other than they save; and the gateway and the coordinator want
those CPUs too."""
MANY_THREADS = 1024
"""Limit of prefill, which has work for all threads."""


class CpuAffinity:
    """Keeps all threads of this process on the CPUs that it was granted."""

    def __init__(self, role: Role, model: ModelConfig) -> None:
        decoding = max(1, model.parameters // WEIGHTS_A_THREAD)
        self._most_threads = decoding if role is Role.DECODE else MANY_THREADS

    def compute_on(self, cpus: Sequence[int]) -> None:
        """Moves every thread of this process to these CPUs, between two steps. Empty: all that the process may use.

        Threads that a library starts later inherit the CPUs of the thread that starts them.
        """
        if not cpus:
            cpus = sorted(os.sched_getaffinity(0))
        for thread in os.listdir("/proc/self/task"):
            with contextlib.suppress(ProcessLookupError):  # a thread may end while we go through them
                os.sched_setaffinity(int(thread), cpus)
        torch.set_num_threads(max(1, min(len(cpus), self._most_threads)))


class CpuBackend:
    """A `Backend`. The system's scheduler shares the CPUs in time, so there are no turns and no spare work."""

    def __init__(
        self, link: CoordinatorLink, model: ModelConfig, role: Role, attached: AttachedMemory, assignment: wk.Appoint
    ) -> None:
        self._link = link
        self._affinity = CpuAffinity(role, model)
        self._affinity.compute_on(assignment.cpus)
        self.engine = CpuEngine(model, attached.weights, attached.pool)
        self.turns = NoTurns()

    def choose_share(self) -> None:
        """Does nothing: the share came as a message."""

    def set_shares(self, message: wk.SetShares) -> None:
        self._affinity.compute_on(message.cpus)
        self._link.send(wk.FromWorker(shares_applied=wk.SharesApplied(change=message.change)))

    def has_spare_work(self) -> bool:
        return False

    def do_spare_work(self) -> None: ...
