"""Turns the shares that a policy asks for into what the partition back end can grant, and tells the workers."""

from __future__ import annotations

import os
from collections.abc import Sequence

import structlog

from semipd.coordinator.floor import Floor
from semipd.core.cores import CoreSplit, split_cores
from semipd.core.errors import ConfigError
from semipd.core.partition import FULL, Shares
from semipd.internal.v1 import worker_pb2 as wk
from semipd.memory.account import Role

log = structlog.get_logger()


def refuse_other_devices(device: str) -> None:
    """Raises ConfigError for a device that this version does not compute on."""
    if device == "cuda":
        raise ConfigError("--device cuda: this version computes on the CPU alone; use cpu or auto")


def choose_backend(asked: str, cpus: Sequence[int]) -> str:
    """The partition back end for `--partition`. Raises ConfigError where this machine can't have it."""
    if asked in ("green", "mps"):
        raise ConfigError(
            f"--partition {asked}: divides a GPU, and this version computes on the CPU; use cores or none"
        )
    if asked == "auto":
        return "cores" if len(cpus) > 1 else "none"
    if asked == "cores" and len(cpus) < 2:
        raise ConfigError("--partition cores: needs two CPUs or more, and this process may use one")
    return asked


class PartitionDesk:
    """The back ends `cores` and `none`. A change reaches each worker between two of its steps; nothing waits."""

    def __init__(self, floor: Floor, cpus: Sequence[int] | None = None) -> None:
        """`cpus`: those to divide; None: all that this process may use."""
        self._floor = floor
        self._cpus = sorted(os.sched_getaffinity(0) if cpus is None else cpus)
        self.backend = choose_backend(floor.config.partition, self._cpus)
        self._split = self._grant(FULL)
        self._wish: Shares | None = None
        self._changes = 0
        self._show()

    def wish(self, shares: Shares) -> None:
        """What the policy asks for. Asking again for the same leaves alone what an operator set meanwhile."""
        if shares != self._wish:
            self._wish = shares
            self.set(shares)

    def set(self, shares: Shares) -> Shares:
        """Grants what is nearest; that."""
        split = self._grant(shares)
        if split != self._split:
            self._split = split
            self._changes += 1
            for role, worker in self._floor.workers.items():
                message = wk.SetShares(change=self._changes, percent=self._percent(role), cpus=self.cpus(role))
                self._floor.post.to_worker(worker.incarnation, wk.ToWorker(set_shares=message))
            self._floor.metrics.switches.inc()
            log.info("partition changed", prefill=split.granted.prefill, decode=split.granted.decode)
            self._show()
        return split.granted

    def cpus(self, role: Role) -> tuple[int, ...]:
        return self._split.prefill if role is Role.PREFILL else self._split.decode

    def _percent(self, role: Role) -> float:
        return self._split.granted.prefill if role is Role.PREFILL else self._split.granted.decode

    def _grant(self, shares: Shares) -> CoreSplit:
        if self.backend == "none":
            return CoreSplit(tuple(self._cpus), tuple(self._cpus), FULL)
        return split_cores(shares, self._cpus)

    def _show(self) -> None:
        self._floor.shares = self._split.granted
        self._floor.metrics.shares(self._split.granted)
