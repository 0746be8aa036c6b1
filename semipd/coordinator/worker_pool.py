"""The workers: who is in office, who is in reserve, and who takes the place of the dead."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import structlog

from semipd.coordinator.mps import Mps
from semipd.coordinator.partition import PartitionController
from semipd.coordinator.processes import Child, Children
from semipd.coordinator.state import CoordinatorState, Worker
from semipd.coordinator.worker_handover import WorkerHandovers
from semipd.internal.v1 import worker_pb2 as wk
from semipd.memory.account import Role
from semipd.memory.roles import WORKER_ROLES, role_to_wire
from semipd.wire.process import EXIT_DEVICE_FAILED

log = structlog.get_logger()

START_LIMIT_S = 120.0
"""For an appointed worker to be ready: on a GPU it compiles kernels and captures graphs."""
RETIRE_S = 10.0
"""For a worker that was told to end to do so."""
FAILED_STARTS = 5
"""Workers in a row that died before they were ready: more are tried, ever more slowly, but nobody waits for them."""


class Events(Protocol):
    """What the coordinator does about workers."""

    def hear_worker(self, worker: Worker, message: wk.FromWorker) -> None: ...
    def has_work(self, role: Role) -> bool: ...
    def worker_lost(self, worker: Worker, *, killed: bool) -> None: ...
    def worker_retired(self, worker: Worker) -> None: ...
    def workers_beyond_recovery(self) -> None: ...


@dataclass(slots=True)
class WorkerProcess:
    child: Child
    said_hello: bool = False
    worker: Worker | None = None
    """None: it has no role yet (a spare), and has not opened the device."""
    retired_s: float | None = None
    """Since when it has nothing and is to end; it isn't listened to any more."""
    ending: bool = False
    """It was killed, and is not buried yet."""
    captured: tuple[int, int] = (0, 0)
    """Of its graphs those that it has captured, and all, as far as it has said."""


class WorkerPool:
    """`attend` buries the dead, `fill_vacancies` puts others in their place; everything else is told to it."""

    def __init__(
        self, state: CoordinatorState, children: Children, events: Events, partition: PartitionController, mps: Mps
    ) -> None:
        self._state = state
        self._children = children
        self._events = events
        self._partition = partition
        self._mps = mps
        self._successions = WorkerHandovers(state, self, partition.percentage, events.has_work)
        self._workers: dict[int, WorkerProcess] = {}
        self._next_incarnation = 1
        self._served = False
        self._failed_starts = 0
        self._not_before_s = 0.0

    def start(self) -> None:
        """Before there is a model: what takes long to import."""
        for _ in WORKER_ROLES:
            self._start_worker()

    def _start_worker(self) -> None:
        incarnation, self._next_incarnation = self._next_incarnation, self._next_incarnation + 1
        child = self._children.start(
            f"worker.{incarnation}",
            "semipd.workers",
            "--incarnation",
            str(incarnation),
            environment=self._mps.workers,
        )
        self._workers[incarnation] = WorkerProcess(child)

    # --- what the workers say ---------------------------------------------------------------------------------------

    def hear(self, incarnation: int, message: wk.FromWorker) -> None:
        process = self._workers.get(incarnation)
        if process is not None and message.HasField("hello"):
            process.said_hello = True
        elif process is None or process.worker is None or process.retired_s is not None:
            log.warning("a message of a worker that is no longer in office is refused", incarnation=incarnation)
        elif message.HasField("ready"):
            self._ready(process.worker, message.ready)
        elif message.HasField("resigned"):
            self._successions.resigned(process.worker)
        else:
            self._events.hear_worker(process.worker, message)

    def _ready(self, worker: Worker, said: wk.Ready) -> None:
        now = self._state.clock.now()
        worker.ready, worker.progress_s, worker.step_rows = True, now, tuple(said.step_rows)
        self._failed_starts = 0
        log.info(
            "worker ready",
            role=worker.role.name.lower(),
            incarnation=worker.incarnation,
            after_s=round(now - worker.appointed_s, 3),
        )

    # --- watching ---------------------------------------------------------------------------------------------------

    def attend(self) -> None:
        """Notices who has ended, and ends who must."""
        if self._mps.attend():
            self.end_clients(abandoned=False)
        for incarnation, process in list(self._workers.items()):
            for event in process.child.events():
                if event.get("event") == "capturing":
                    process.captured = int(event["done"]), int(event["total"])
            if process.child.exit_code() is not None:
                self._bury_worker(incarnation, process)
            else:
                self._hurry(process)

    def _hurry(self, process: WorkerProcess) -> None:
        """Ends a process that doesn't come to what it is about to do."""
        worker, now = process.worker, self._state.clock.now()
        if process.retired_s is not None and now - process.retired_s > RETIRE_S:
            process.child.abandon()
        elif worker is not None and not worker.ready and now - worker.appointed_s > START_LIMIT_S:
            self.replace(worker, f"not ready after {START_LIMIT_S:.0f} s")

    def _bury_worker(self, incarnation: int, process: WorkerProcess) -> None:
        del self._workers[incarnation]
        code, killed, worker = process.child.exit_code(), process.child.killed, process.worker
        self._children.bury(process.child)
        log.log(
            logging.INFO if code == 0 else logging.WARNING,
            "worker process ended",
            incarnation=incarnation,
            exit_code=code,
        )
        if code == EXIT_DEVICE_FAILED and self._mps.shared:
            # MPS says neither whose fault it was, nor lets anybody in before all who were there are gone.
            self.end_clients(abandoned=True)
        if process.retired_s is not None:
            return
        if worker is None or not worker.ready:
            self._failed_starts += 1
            self._not_before_s = self._state.clock.now() + min(30.0, 0.1 * 2**self._failed_starts)
        if worker is not None:
            self._leave_office(worker, resigned=code == 0, killed=killed)
        if self._failed_starts >= FAILED_STARTS and len(self._state.workers) < len(WORKER_ROLES):
            self._events.workers_beyond_recovery()

    def _leave_office(self, worker: Worker, *, resigned: bool, killed: bool) -> None:
        """The process of a worker, or of a successor, is gone."""
        successor = self._successions.died(worker)
        if self._state.workers.get(worker.role) is not worker:
            return
        del self._state.workers[worker.role]
        if resigned and worker.leaving_s is not None:
            self._events.worker_retired(worker)
        else:
            self._state.metrics.restarted(worker.role.name.lower())
            self._events.worker_lost(worker, killed=killed)
        if successor is not None:
            self._state.workers[worker.role] = successor

    def end_clients(self, *, abandoned: bool) -> None:
        """Kills every worker that has opened the device, or mapped what is gone; spares have done neither."""
        for process in self._workers.values():
            if process.worker is not None and not process.ending:
                process.ending = True
                if abandoned:
                    process.child.abandon()
                else:
                    process.child.kill()

    def fill_vacancies(self) -> None:
        """Gives roles to processes that have none, and starts processes where too few are left for the rest."""
        if self._state.account is None:
            return
        self._successions.attend()
        for role in WORKER_ROLES:
            if role not in self._state.workers:
                worker = self._appoint(role, replacement=self._served)
                if worker is not None:
                    self._state.workers[role] = worker
        both_ready = all(self._state.ready_worker(role) for role in WORKER_ROLES)
        self._served = self._served or both_ready
        # A fault on a GPU under MPS takes both workers at once.
        spares = (2 if self._state.on_gpu else 1) if self._state.config.spare_worker and both_ready else 0
        wanted = len(WORKER_ROLES) - len(self._state.workers) + self._successions.wanted() + spares
        free = sum(process.worker is None for process in self._workers.values())
        if free < wanted and self._state.clock.now() >= self._not_before_s:
            self._start_worker()

    def _appoint(self, role: Role, *, replacement: bool) -> Worker | None:
        """Gives the role to a process that has none. None: there is no such process, or it could not begin now."""
        now = self._state.clock.now()
        device_closed = self._mps.shared and any(process.ending for process in self._workers.values())
        if now < self._not_before_s or not self._mps.answers or device_closed:
            return None
        for incarnation, process in self._workers.items():
            if process.worker is None and process.said_hello:
                percentage = self._partition.percentage(role)
                worker = Worker(role, incarnation, progress_s=now, appointed_s=now, percentage=percentage)
                process.worker = worker
                appoint = wk.Appoint(role=role_to_wire(role), replacement=replacement)
                self._partition.charge(appoint)
                self._state.transport.to_worker(incarnation, wk.ToWorker(appoint=appoint))
                return worker
        return None

    # --- for successions --------------------------------------------------------------------------------------------

    def appoint_beside(self, role: Role) -> Worker | None:
        return self._appoint(role, replacement=False)

    def swap(self, old: Worker, new: Worker) -> None:
        self._events.worker_retired(old)
        self._state.workers[old.role] = new
        new.progress_s = self._state.clock.now()
        self.dismiss(old)

    def dismiss(self, worker: Worker) -> None:
        process = self._workers.get(worker.incarnation)
        if process is not None:
            process.retired_s = self._state.clock.now()
            self._state.transport.to_worker(worker.incarnation, wk.ToWorker(shutdown=wk.Shutdown()))

    def stalled_s(self, worker: Worker, has_work: bool) -> float:
        """For how long it has had work and shown no progress."""
        now = self._state.clock.now()
        if not has_work or not worker.ready:
            worker.progress_s = now
        return now - worker.progress_s

    def replace(self, worker: Worker, why: str) -> None:
        """Ends its process; the next round finds it dead and appoints another. A stopped process dies too."""
        process = self._workers.get(worker.incarnation)
        if process is not None and not process.ending:
            process.ending = True
            log.error("worker replaced", role=worker.role.name.lower(), incarnation=worker.incarnation, why=why)
            process.child.abandon()

    # --- for others -------------------------------------------------------------------------------------------------

    def roll(self) -> Iterator[tuple[str, int, int]]:
        """What each is, its process id and incarnation."""
        for incarnation, process in self._workers.items():
            yield self._title(process), process.child.pid, incarnation

    @property
    def captured(self) -> tuple[int, int]:
        """Graphs captured and graphs in all, over the workers that have said so. (0, 0) once the server has served:
        what comes later, for a replacement or when idle, is nothing to wait for."""
        said = [] if self._served else [process.captured for process in self._workers.values()]
        return sum(done for done, _ in said), sum(total for _, total in said)

    def _title(self, process: WorkerProcess) -> str:
        if process.worker is None:
            return "spare"
        if process.retired_s is not None:
            return "retired"
        in_office = self._state.workers.get(process.worker.role) is process.worker
        return process.worker.role.name.lower() if in_office else "successor"

    def close(self) -> None:
        for process in self._workers.values():
            self._children.bury(process.child)
        self._workers.clear()
