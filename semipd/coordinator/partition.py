"""Turns the shares that a policy asks for into what the partition back end can grant, and lets the workers know.

One class a back end; `cores` tells by message, `green` by the control block, `mps` by new workers.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import structlog

from semipd.coordinator.state import CoordinatorState
from semipd.core.cores import CoreSplit, split_cores
from semipd.core.partition import FULL, Mode, Shares
from semipd.core.sms import SmSplit, split_sms, whole_percents
from semipd.internal.v1 import worker_pb2 as wk
from semipd.memory.account import Role
from semipd.memory.control import Split
from semipd.memory.roles import role_from_wire

log = structlog.get_logger()


class NoPartition:
    """Back end `none`: both phases have everything. And what the others are beyond their own."""

    granted = FULL

    def change(self, asked: Shares, number: int) -> bool:
        """Grants what is nearest; whether that is another grant than before. `number` counts the changes."""
        return False

    def device_known(self, sms: int) -> None:
        """The device has so many multiprocessors. To be followed by a `change`."""

    def charge(self, appoint: wk.Appoint, role: Role) -> None:
        """Adds what a new worker must know from the start."""


class CorePartition(NoPartition):
    """A change reaches each worker as a message between two of its steps; nothing waits."""

    def __init__(self, state: CoordinatorState, cpus: Sequence[int]) -> None:
        self._state = state
        self._cpus = cpus
        self._split = split_cores(FULL, cpus)
        self.granted = self._split.granted

    def change(self, asked: Shares, number: int) -> bool:
        split = split_cores(asked, self._cpus)
        if split == self._split:
            return False
        self._split, self.granted = split, split.granted
        for role, worker in self._state.workers.items():
            percent = _of(split.granted, role)
            message = wk.SetShares(change=number, percent=percent, cpus=_cpus(split, role))
            self._state.transport.to_worker(worker.incarnation, wk.ToWorker(set_shares=message))
        return True

    def charge(self, appoint: wk.Appoint, role: Role) -> None:
        appoint.cpus.extend(_cpus(self._split, role))


class GreenPartition(NoPartition):
    """No message: each worker reads the split from the control block before each step."""

    def __init__(self, state: CoordinatorState) -> None:
        self._state = state
        self._sms = 0
        self._split: SmSplit | None = None

    def change(self, asked: Shares, number: int) -> bool:
        if not self._sms or self._state.control is None:
            return False  # the resident is not ready, and has not said what there is to divide
        split = split_sms(asked, self._sms)
        if split == self._split:
            return False
        self._split, self.granted = split, split.granted
        now_ns = int(self._state.clock.now() * 1e9)
        self._state.control.set_split(Split(split.prefill, split.decode, number), now_ns)
        return True

    def device_known(self, sms: int) -> None:
        self._sms = sms
        self._split = None  # the control block is new, too


class MpsPartition(NoPartition):
    """A worker's share is for life: a change means successors (see `succession`)."""

    def __init__(self) -> None:
        self.percents = whole_percents()

    def change(self, asked: Shares, number: int) -> bool:
        percents = whole_percents(asked)
        if percents == self.percents:
            return False
        self.percents, self.granted = percents, percents.granted
        return True

    def charge(self, appoint: wk.Appoint, role: Role) -> None:
        appoint.active_thread_percentage = int(_of(self.granted, role))


class PartitionController:
    def __init__(self, state: CoordinatorState, cpus: Sequence[int] | None = None) -> None:
        """`cpus`: those that `cores` divides; None: all that this process may use."""
        self._state = state
        self.backend = state.config.partition
        self._divided = self._open(sorted(os.sched_getaffinity(0) if cpus is None else cpus))
        self._asked = FULL
        self._wish: Shares | None = None
        self._step_tokens: int | None = None
        self._changes = 0
        self._show()

    def _open(self, cpus: Sequence[int]) -> NoPartition:
        match self.backend:
            case "cores":
                return CorePartition(self._state, cpus)
            case "green":
                return GreenPartition(self._state)
            case "mps":
                return MpsPartition()
            case _:
                return NoPartition()

    def wish(self, shares: Shares) -> None:
        """What the policy asks for. Asking again for the same leaves alone what an operator set meanwhile."""
        if shares != self._wish:
            self._wish = shares
            self.set(shares)

    def change_mode(self, mode: Mode, step_tokens: int | None = None) -> None:
        """What the policy asks for; only where `modes` has it, and the policy host sees to that. `step_tokens`: as a
        plan's."""
        if mode is not self._state.mode:
            log.info("mode changed", mode=mode.value)
        elif step_tokens == self._step_tokens:
            return
        self._state.mode, self._step_tokens = mode, step_tokens
        self._tell_mode()

    def _tell_mode(self) -> None:
        if self._state.control is not None:
            self._state.control.take_turns((self._step_tokens or 1) if self._state.mode is Mode.TURNS else 0)

    @property
    def modes(self) -> frozenset[Mode]:
        """How the phases can use the device. Turns and mixed batches need a worker that can have all of it, so not a
        share for life; turns also one pass at a time on it: not a CPU, whose passes end when they end."""
        if self._state.config.device != "cuda":
            return frozenset({Mode.SPLIT, Mode.MIXED})
        whole = self.backend in ("green", "none")
        return frozenset(Mode) if whole else frozenset({Mode.SPLIT})

    def set(self, shares: Shares) -> Shares:
        """Grants what is nearest; that."""
        self._asked = shares
        if self._divided.change(shares, self._changes + 1):
            self._changes += 1
            granted = self._divided.granted
            self._state.metrics.switches.inc()
            log.info("partition changed", prefill=granted.prefill, decode=granted.decode, change=self._changes)
            self._show()
        return self._divided.granted

    def device_known(self, sms: int) -> None:
        """The resident is ready: what was asked for until now can be granted."""
        self._divided.device_known(sms)
        self._divided.change(self._asked, self._changes)
        self._tell_mode()
        self._show()

    def charge(self, appoint: wk.Appoint) -> None:
        """Adds to an appointment what the worker must know of its share from the start."""
        self._divided.charge(appoint, role_from_wire(appoint.role))

    def percentage(self, role: Role) -> int | None:
        """Back end `mps`: the active-thread percentage that a worker of this role should have. None: another one."""
        return int(_of(self._divided.granted, role)) if isinstance(self._divided, MpsPartition) else None

    def applied(self, role: Role, message: wk.SharesApplied) -> None:
        """A worker computes under a new split for the first time."""
        log.debug(
            "shares applied",
            role=role.name.lower(),
            change=message.change,
            delay_s=message.delay_s,
            sms=message.sms,
        )
        if message.sms:
            self._state.metrics.split_delay.labels(role.name.lower()).observe(message.delay_s)

    def _show(self) -> None:
        self._state.shares = self._divided.granted
        self._state.metrics.shares(self._divided.granted)


def _of(shares: Shares, role: Role) -> float:
    return shares.prefill if role is Role.PREFILL else shares.decode


def _cpus(split: CoreSplit, role: Role) -> tuple[int, ...]:
    return split.prefill if role is Role.PREFILL else split.decode
