"""Partition back end `mps`: a worker's share is for life, so a change of shares is a change of workers.

The switch is delayed and asynchronous (semi-PD, section 4.3): a successor starts beside the worker in office, which
goes on as if nothing were. Once it is ready the old one ends what it has begun and the successor takes over, each role
on its own. Prefill: no more batches, and when those it has are answered its leases go to the successor. Decode: it is
asked to resign, reports its last step, hands its leases to the coordinator, says so and exits; the successor adopts.

One succession a role at a time. What is wished meanwhile waits for its end, and the latest wish counts. Whoever dies:
without the old one the successor is in office at once, ready or not; without the successor all stays as it is, and
another one is tried.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import structlog

from semipd.coordinator.state import CoordinatorState, Worker
from semipd.internal.v1 import worker_pb2 as wk
from semipd.memory.account import Role
from semipd.memory.roles import WORKER_ROLES

log = structlog.get_logger()


class Office(Protocol):
    """What is done with processes."""

    def appoint_beside(self, role: Role) -> Worker | None:
        """A successor for that role, not in office yet. None: no process is free."""

    def swap(self, old: Worker, new: Worker) -> None:
        """The old one has answered for everything: the new one is in office, the old one may end."""

    def dismiss(self, worker: Worker) -> None:
        """Ends a worker that has nothing."""

    def replace(self, worker: Worker, why: str) -> None:
        """Kills a worker; recovery sees to what it had."""


@dataclass(slots=True)
class WorkerHandover:
    old: Worker
    new: Worker


class WorkerHandovers:
    def __init__(
        self,
        state: CoordinatorState,
        office: Office,
        percentage: Callable[[Role], int | None],
        has_work: Callable[[Role], bool],
    ) -> None:
        """`percentage`: what a worker of that role should have now."""
        self._state = state
        self._office = office
        self._percentage = percentage
        self._has_work = has_work
        self._under_way: dict[Role, WorkerHandover] = {}

    def wanted(self) -> int:
        """Processes without a role that successions wait for."""
        return sum(role not in self._under_way and self._due(role) is not None for role in WORKER_ROLES)

    def _due(self, role: Role) -> Worker | None:
        """The worker in office, where it should have another share than it has."""
        worker = self._state.ready_worker(role)
        return worker if worker is not None and worker.percentage != self._percentage(role) else None

    def attend(self) -> None:
        """Begins what is due and takes what is under way a step further."""
        for role in WORKER_ROLES:
            self._hurry(role)
            succession = self._under_way.get(role)
            if succession is not None:
                self._advance(role, succession)
            elif (old := self._due(role)) is not None and (new := self._office.appoint_beside(role)) is not None:
                log.info("successor appointed", role=role.name.lower(), incarnation=new.incarnation)
                self._under_way[role] = WorkerHandover(old, new)

    def _advance(self, role: Role, succession: WorkerHandover) -> None:
        old, new = succession.old, succession.new
        if not new.ready:
            return
        if old.leaving_s is None:
            if old.percentage == self._percentage(role):  # the change was taken back
                del self._under_way[role]
                self._office.dismiss(new)
                return
            old.leaving_s = self._state.clock.now()
            if role is Role.DECODE:
                self._state.transport.to_worker(old.incarnation, wk.ToWorker(resign=wk.Resign()))
        if role is Role.PREFILL and not self._has_work(role):
            self._swap(succession)

    def _hurry(self, role: Role) -> None:
        """Who was asked to resign and does not is replaced as anybody who hangs."""
        worker, now = self._state.workers.get(role), self._state.clock.now()
        if role is not Role.DECODE or worker is None or worker.leaving_s is None:
            return
        if now - worker.leaving_s > self._state.config.stall_replace_s:
            self._office.replace(worker, "it was asked to resign and does not")

    def resigned(self, worker: Worker) -> None:
        """It has said its last word."""
        succession = self._under_way.get(worker.role)
        if succession is not None and succession.old is worker and worker.leaving_s is not None:
            self._swap(succession)

    def _swap(self, succession: WorkerHandover) -> None:
        del self._under_way[succession.old.role]
        self._office.swap(succession.old, succession.new)

    def died(self, worker: Worker) -> Worker | None:
        """A worker's process is gone. Its successor where it had one: that is to be in office now."""
        succession = self._under_way.get(worker.role)
        if succession is None or worker not in (succession.old, succession.new):
            return None
        del self._under_way[worker.role]
        if worker is succession.old:
            return succession.new
        if worker.role is Role.PREFILL:
            succession.old.leaving_s = None  # it goes on; decode, once told to resign, does so
        return None
