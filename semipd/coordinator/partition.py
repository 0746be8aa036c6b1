"""Grants the shares that a policy or an operator asks for, as far as the partition back end can, and tells the workers.

There is one class for each back end. `cores` tells the workers by message, `green` by the control block, `mps` by
starting new ones.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import structlog

from semipd.coordinator.state import CoordinatorState
from semipd.core.cores import split_cores
from semipd.core.partition import FULL, Mode, Shares
from semipd.core.sms import SmSplit, split_sms, splits, whole_percents
from semipd.internal.v1 import worker_pb2 as wk
from semipd.memory.account import Role
from semipd.memory.control import PublishedSplit
from semipd.memory.roles import role_from_wire

log = structlog.get_logger()

WHOLE = 100
"""Percent, in which back end `mps` divides a device."""


class NoPartition:
    """Back end `none`: both phases have the whole device. The other back ends override what they do differently."""

    granted = FULL
    """The shares that are granted now."""
    splits: tuple[Shares, ...] = (FULL,)
    """The shares that can be granted, as `Limits.splits` has them."""
    sms = 0
    """Streaming multiprocessors of the device, or CPUs; 0: not known yet."""

    def change(self, asked: Shares, number: int) -> bool:
        """Grants the nearest feasible shares. Returns whether they differ from those before. `number` counts the
        changes."""
        return False

    def device_known(self, sms: int) -> None:
        """Notes how many multiprocessors the device has. To be followed by a call of `change`."""
        self.sms = sms

    def fill_appoint(self, appoint: wk.Appoint, role: Role) -> None:
        """Adds what a new worker must know of its share from the start."""


class CorePartition(NoPartition):
    """Back end `cores`: a change reaches each worker as a message between two of its steps. Nothing waits for it."""

    def __init__(self, state: CoordinatorState, cpus: Sequence[int]) -> None:
        self._state = state
        self._cpus = cpus
        self._split = split_cores(FULL, cpus)
        self.granted = self._split.granted
        self.sms, self.splits = len(cpus), splits(len(cpus), step=1)

    def change(self, asked: Shares, number: int) -> bool:
        split = split_cores(asked, self._cpus)
        if split == self._split:
            return False
        self._split, self.granted = split, split.granted
        for role, worker in self._state.workers.items():
            percent = split.granted.of(role.phase)
            message = wk.SetShares(change=number, percent=percent, cpus=split.of(role.phase))
            self._state.transport.to_worker(worker.incarnation, wk.ToWorker(set_shares=message))
        return True

    def device_known(self, sms: int) -> None:
        """Changes nothing: a CPU has no multiprocessors."""

    def fill_appoint(self, appoint: wk.Appoint, role: Role) -> None:
        appoint.cpus.extend(self._split.of(role.phase))


class GreenPartition(NoPartition):
    """Back end `green`: no message is sent; each worker reads the split from the control block before each step."""

    def __init__(self, state: CoordinatorState) -> None:
        self._state = state
        self._split: SmSplit | None = None

    def change(self, asked: Shares, number: int) -> bool:
        if not self.sms or self._state.control is None:
            return False  # the resident is not ready, and has not said how many multiprocessors there are
        split = split_sms(asked, self.sms)
        if split == self._split:
            return False
        self._split, self.granted = split, split.granted
        now_ns = int(self._state.clock.now() * 1e9)
        self._state.control.set_split(PublishedSplit(split.prefill, split.decode, number), now_ns)
        return True

    def device_known(self, sms: int) -> None:
        self.sms, self.splits = sms, splits(sms)
        self._split = None  # the control block is new as well


class MpsPartition(NoPartition):
    """Back end `mps`: a worker's share is for life, so a change means successors (see `worker_handover`)."""

    splits = splits(WHOLE, step=1)

    def __init__(self) -> None:
        self.percents = whole_percents()

    def change(self, asked: Shares, number: int) -> bool:
        percents = whole_percents(asked)
        if percents == self.percents:
            return False
        self.percents, self.granted = percents, percents.granted
        return True

    def fill_appoint(self, appoint: wk.Appoint, role: Role) -> None:
        appoint.active_thread_percentage = int(self.granted.of(role.phase))


class PartitionController:
    """Decides on shares and mode, and remembers what was asked for."""

    def __init__(self, state: CoordinatorState, cpus: Sequence[int] | None = None) -> None:
        """`cpus` are those that `cores` divides. None: all that this process may use."""
        self._state = state
        self.backend = state.config.partition
        self._partition = self._open(sorted(os.sched_getaffinity(0) if cpus is None else cpus))
        self._asked = FULL
        self._policy_asked: Shares | None = None
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

    def request(self, shares: Shares) -> None:
        """Sets the shares that the policy asks for. If it asks for the same again, shares that an operator set
        meanwhile stay."""
        if shares != self._policy_asked:
            self._policy_asked = shares
            self.set(shares)

    def change_mode(self, mode: Mode, step_tokens: int | None = None) -> None:
        """Sets the mode that the policy asks for, with the plan's `step_tokens`. The policy host has made sure that
        `modes` has it."""
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
        """The modes in which the phases can use the device.

        Time slices and mixed batches need a worker that can have the whole device, so not a share for life. Time slices
        also need that one pass at a time is on the device. A CPU is excluded: nobody controls when its passes end.
        """
        if self._state.config.device != "cuda":
            return frozenset({Mode.SPLIT, Mode.MIXED})
        whole = self.backend in ("green", "none")
        return frozenset(Mode) if whole else frozenset({Mode.SPLIT})

    def set(self, shares: Shares) -> Shares:
        """Grants the nearest feasible shares and returns them."""
        self._asked = shares
        if self._partition.change(shares, self._changes + 1):
            self._changes += 1
            granted = self._partition.granted
            self._state.metrics.switches.inc()
            log.info("partition changed", prefill=granted.prefill, decode=granted.decode, change=self._changes)
            self._show()
        return self._partition.granted

    @property
    def splits(self) -> tuple[Shares, ...]:
        """The shares that can be granted, as `Limits.splits` has them. On a GPU that the resident has not opened yet
        that is the undivided device alone."""
        return self._partition.splits

    @property
    def sms(self) -> int:
        """Streaming multiprocessors of the device, or CPUs that can be divided; 0: not known yet, or not divided."""
        return self._partition.sms

    def device_known(self, sms: int) -> None:
        """Grants what was asked for until now: the resident is ready and has said how many multiprocessors there
        are."""
        self._partition.device_known(sms)
        self._partition.change(self._asked, self._changes)
        self._tell_mode()
        self._show()

    def fill_appoint(self, appoint: wk.Appoint) -> None:
        """Adds to an Appoint message what the worker must know of its share from the start."""
        self._partition.fill_appoint(appoint, role_from_wire(appoint.role))

    def percentage(self, role: Role) -> int | None:
        """Returns the active-thread percentage that a worker of this role should have under back end `mps`. None:
        another back end."""
        return int(self._partition.granted.of(role.phase)) if isinstance(self._partition, MpsPartition) else None

    def on_shares_applied(self, role: Role, message: wk.SharesApplied) -> None:
        """Records that a worker computes under a new split for the first time."""
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
        self._state.shares = self._partition.granted
        self._state.metrics.shares(self._partition.granted)
