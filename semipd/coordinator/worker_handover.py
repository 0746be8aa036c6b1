"""Changes workers when shares change under partition back end `mps`, where a worker's share is for life.

The switch is delayed and asynchronous (semi-PD, section 4.3): a successor starts beside the current worker, which goes
on as before. Once the successor is ready, the old worker is drained: it ends what it has begun and the successor takes
over, each role on its own. A draining prefill worker gets no more batches; when those it has are answered, its leases
go to the successor. A decode worker is asked to resign: it reports its last step, hands its leases to the coordinator,
says so and exits; then the successor adopts the sequences.

There is one handover a role at a time. Shares that are requested meanwhile wait for its end, and the latest request
counts. If the old worker dies, its successor is assigned at once, ready or not. If the successor dies, all stays as it
is, and another one is tried.
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


class WorkerLifecycle(Protocol):
    """The operations on worker processes that a handover needs. The worker pool implements them."""

    def assign_successor(self, role: Role) -> Worker | None:
        """Gives the role to a process beside the current worker. Returns None where no process is free."""

    def swap(self, old: Worker, new: Worker) -> None:
        """Assigns the role to the new worker and ends the old one, which has answered for everything."""

    def shut_down(self, worker: Worker) -> None:
        """Ends a worker that has no work and no leases."""

    def replace(self, worker: Worker, why: str) -> None:
        """Kills a worker. Recovery takes back what it had."""


@dataclass(slots=True)
class WorkerHandover:
    """A change from one worker to its successor that is under way."""

    old: Worker
    new: Worker


class WorkerHandovers:
    """The handovers of both roles."""

    def __init__(
        self,
        state: CoordinatorState,
        lifecycle: WorkerLifecycle,
        percentage: Callable[[Role], int | None],
        has_work: Callable[[Role], bool],
    ) -> None:
        """`percentage` returns the percentage that a worker of a role should have now, `has_work` whether it has
        something to compute."""
        self._state = state
        self._lifecycle = lifecycle
        self._percentage = percentage
        self._has_work = has_work
        self._under_way: dict[Role, WorkerHandover] = {}

    def wanted(self) -> int:
        """Returns the number of processes without a role that handovers wait for."""
        return sum(role not in self._under_way and self._due(role) is not None for role in WORKER_ROLES)

    def _due(self, role: Role) -> Worker | None:
        """Returns the current worker where it should have another share than it has; else None."""
        worker = self._state.ready_worker(role)
        return worker if worker is not None and worker.percentage != self._percentage(role) else None

    def poll(self) -> None:
        """Begins the handovers that are due, and takes those under way a step further."""
        for role in WORKER_ROLES:
            self._replace_overdue(role)
            handover = self._under_way.get(role)
            if handover is not None:
                self._advance(role, handover)
            elif (old := self._due(role)) is not None and (new := self._lifecycle.assign_successor(role)) is not None:
                log.info("successor assigned", role=role.name.lower(), incarnation=new.incarnation)
                self._under_way[role] = WorkerHandover(old, new)

    def _advance(self, role: Role, handover: WorkerHandover) -> None:
        old, new = handover.old, handover.new
        if not new.ready:
            return
        if old.draining_s is None:
            if old.percentage == self._percentage(role):  # the change was taken back
                del self._under_way[role]
                self._lifecycle.shut_down(new)
                return
            old.draining_s = self._state.clock.now()
            if role is Role.DECODE:
                self._state.transport.to_worker(old.incarnation, wk.ToWorker(resign=wk.Resign()))
        if role is Role.PREFILL and not self._has_work(role):
            self._swap(handover)

    def _replace_overdue(self, role: Role) -> None:
        """Replaces a decode worker that was asked to resign and does not, like any worker that hangs."""
        worker, now = self._state.workers.get(role), self._state.clock.now()
        if role is not Role.DECODE or worker is None or worker.draining_s is None:
            return
        if now - worker.draining_s > self._state.config.stall_replace_s:
            self._lifecycle.replace(worker, "it was asked to resign and does not")

    def on_resigned(self, worker: Worker) -> None:
        """Lets the successor take over from a worker that has sent its last message."""
        handover = self._under_way.get(worker.role)
        if handover is not None and handover.old is worker and worker.draining_s is not None:
            self._swap(handover)

    def _swap(self, handover: WorkerHandover) -> None:
        del self._under_way[handover.old.role]
        self._lifecycle.swap(handover.old, handover.new)

    def on_worker_ended(self, worker: Worker) -> Worker | None:
        """Ends the handover in which a worker took part whose process is gone.

        Returns its successor, which is to be assigned now; None: it had no successor, or was one.
        """
        handover = self._under_way.get(worker.role)
        if handover is None or worker not in (handover.old, handover.new):
            return None
        del self._under_way[worker.role]
        if worker is handover.old:
            return handover.new
        if worker.role is Role.PREFILL:
            handover.old.draining_s = None  # it goes on; a decode worker that was asked to resign does resign
        return None
