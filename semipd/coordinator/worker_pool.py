"""The worker processes: which have a role, which are spares, and which take the place of dead ones."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import structlog

from semipd.coordinator.mps import Mps
from semipd.coordinator.partition import PartitionController
from semipd.coordinator.processes import ChildProcess, ChildProcesses
from semipd.coordinator.state import CoordinatorState, Worker
from semipd.coordinator.worker_handover import WorkerHandovers
from semipd.internal.v1 import worker_pb2 as wk
from semipd.memory.account import Role
from semipd.memory.roles import WORKER_ROLES, role_to_wire
from semipd.wire.process import EXIT_DEVICE_FAILED

log = structlog.get_logger()

START_LIMIT_S = 120.0
"""Seconds for a newly assigned worker to be ready: on a GPU it compiles kernels and captures graphs."""
SHUTDOWN_LIMIT_S = 10.0
"""Seconds for a worker that was told to end to do so."""
FAILED_STARTS = 5
"""Workers in a row that die before they are ready until requests are ended. More are tried, ever more slowly."""


class WorkerEvents(Protocol):
    """The coordinator's reactions to events of workers."""

    def on_worker_message(self, worker: Worker, message: wk.FromWorker) -> None: ...
    def on_worker_lost(self, worker: Worker, *, killed: bool) -> None: ...
    def on_worker_drained(self, worker: Worker) -> None: ...
    def on_workers_beyond_recovery(self) -> None: ...
    def has_work(self, role: Role) -> bool: ...


@dataclass(slots=True)
class WorkerProcess:
    """A worker's process, from its start until it is reaped."""

    child: ChildProcess
    said_hello: bool = False
    worker: Worker | None = None
    """None: it has no role yet (a spare), and has not opened the device."""
    shutdown_s: float | None = None
    """The time since when it has nothing and is to end; its messages are refused. None: it is in use."""
    dying: bool = False
    """True if it was killed and is not reaped yet."""
    captured: tuple[int, int] = (0, 0)
    """(captured, total) CUDA graphs, as last reported."""


class WorkerPool:
    """Starts worker processes and gives them roles. `poll` reaps the dead ones, `assign_roles` replaces them."""

    def __init__(
        self,
        state: CoordinatorState,
        children: ChildProcesses,
        events: WorkerEvents,
        partition: PartitionController,
        mps: Mps,
    ) -> None:
        self._state = state
        self._children = children
        self._events = events
        self._partition = partition
        self._mps = mps
        self._handovers = WorkerHandovers(state, self, partition.percentage, events.has_work)
        self._workers: dict[int, WorkerProcess] = {}
        self._next_incarnation = 1
        self._served = False
        self._failed_starts = 0
        self._retry_at_s = 0.0

    def start(self) -> None:
        """Starts the processes, before there is a model: what they import takes long."""
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

    # --- messages ---------------------------------------------------------------------------------------------------

    def on_message(self, incarnation: int, message: wk.FromWorker) -> None:
        """Applies a worker's message. Messages of processes without a role, except Hello, are refused."""
        process = self._workers.get(incarnation)
        if process is not None and message.HasField("hello"):
            process.said_hello = True
        elif process is None or process.worker is None or process.shutdown_s is not None:
            log.warning("a message of a worker that is no longer assigned is refused", incarnation=incarnation)
        elif message.HasField("ready"):
            self._on_ready(process.worker, message.ready)
        elif message.HasField("resigned"):
            self._handovers.on_resigned(process.worker)
        else:
            self._events.on_worker_message(process.worker, message)

    def _on_ready(self, worker: Worker, message: wk.Ready) -> None:
        now = self._state.clock.now()
        worker.ready, worker.progress_s, worker.decode_capture_sizes = True, now, tuple(message.step_rows)
        self._failed_starts = 0
        log.info(
            "worker ready",
            role=worker.role.name.lower(),
            incarnation=worker.incarnation,
            after_s=round(now - worker.assigned_s, 3),
        )

    # --- watching ---------------------------------------------------------------------------------------------------

    def poll(self) -> None:
        """Reaps the processes that have ended, and ends those that are overdue."""
        if self._mps.poll():
            self.end_clients(faulty=False)
        for incarnation, process in list(self._workers.items()):
            for event in process.child.events():
                if event.get("event") == "capturing":
                    process.captured = int(event["done"]), int(event["total"])
            if process.child.exit_code() is not None:
                self._reap(incarnation, process)
            else:
                self._end_overdue(process)

    def _end_overdue(self, process: WorkerProcess) -> None:
        """Ends a process that takes too long to become ready, or to end."""
        worker, now = process.worker, self._state.clock.now()
        if process.shutdown_s is not None and now - process.shutdown_s > SHUTDOWN_LIMIT_S:
            process.child.kill_faulty()
        elif worker is not None and not worker.ready and now - worker.assigned_s > START_LIMIT_S:
            self.replace(worker, f"not ready after {START_LIMIT_S:.0f} s")

    def _reap(self, incarnation: int, process: WorkerProcess) -> None:
        del self._workers[incarnation]
        code, killed, worker = process.child.exit_code(), process.child.killed_from_outside, process.worker
        self._children.reap(process.child)
        log.log(
            logging.INFO if code == 0 else logging.WARNING,
            "worker process ended",
            incarnation=incarnation,
            exit_code=code,
        )
        if code == EXIT_DEVICE_FAILED and self._mps.shared:
            # MPS does not say which client caused the fault, and admits no client before all present ones are gone.
            self.end_clients(faulty=True)
        if process.shutdown_s is not None:
            return
        if worker is None or not worker.ready:
            self._failed_starts += 1
            self._retry_at_s = self._state.clock.now() + min(30.0, 0.1 * 2**self._failed_starts)
        if worker is not None:
            self._on_worker_ended(worker, resigned=code == 0, killed=killed)
        if self._failed_starts >= FAILED_STARTS and len(self._state.workers) < len(WORKER_ROLES):
            self._events.on_workers_beyond_recovery()

    def _on_worker_ended(self, worker: Worker, *, resigned: bool, killed: bool) -> None:
        """Takes the role away from a worker, or a successor, whose process is gone."""
        successor = self._handovers.on_worker_ended(worker)
        if self._state.workers.get(worker.role) is not worker:
            return
        del self._state.workers[worker.role]
        if resigned and worker.draining_s is not None:
            self._events.on_worker_drained(worker)
        else:
            self._state.metrics.restarted(worker.role.name.lower())
            self._events.on_worker_lost(worker, killed=killed)
        if successor is not None:
            self._state.workers[worker.role] = successor

    def end_clients(self, *, faulty: bool) -> None:
        """Kills every worker that has opened the device or mapped the resident's memory; spares have done neither.

        `faulty`: a worker's own fault is presumed. Else the workers count as killed from outside.
        """
        for process in self._workers.values():
            if process.worker is not None and not process.dying:
                process.dying = True
                if faulty:
                    process.child.kill_faulty()
                else:
                    process.child.kill()

    def assign_roles(self) -> None:
        """Gives unassigned roles to processes that have none, and starts processes where too few are left."""
        if self._state.account is None:
            return
        self._handovers.poll()
        for role in WORKER_ROLES:
            if role not in self._state.workers:
                worker = self._assign(role, replacement=self._served)
                if worker is not None:
                    self._state.workers[role] = worker
        both_ready = all(self._state.ready_worker(role) for role in WORKER_ROLES)
        self._served = self._served or both_ready
        # A fault on a GPU under MPS takes both workers at once.
        spares = (2 if self._state.on_gpu else 1) if self._state.config.spare_worker and both_ready else 0
        wanted = len(WORKER_ROLES) - len(self._state.workers) + self._handovers.wanted() + spares
        free = sum(process.worker is None for process in self._workers.values())
        if free < wanted and self._state.clock.now() >= self._retry_at_s:
            self._start_worker()

    def _assign(self, role: Role, *, replacement: bool) -> Worker | None:
        """Gives the role to a process that has none. Returns None where there is no such process, or where it could not
        open the device now."""
        now = self._state.clock.now()
        device_closed = self._mps.shared and any(process.dying for process in self._workers.values())
        if now < self._retry_at_s or not self._mps.answers or device_closed:
            return None
        for incarnation, process in self._workers.items():
            if process.worker is None and process.said_hello:
                percentage = self._partition.percentage(role)
                worker = Worker(role, incarnation, progress_s=now, assigned_s=now, percentage=percentage)
                process.worker = worker
                appoint = wk.Appoint(role=role_to_wire(role), replacement=replacement)
                self._partition.fill_appoint(appoint)
                self._state.transport.to_worker(incarnation, wk.ToWorker(appoint=appoint))
                return worker
        return None

    # --- for handovers ----------------------------------------------------------------------------------------------

    def assign_successor(self, role: Role) -> Worker | None:
        return self._assign(role, replacement=False)

    def swap(self, old: Worker, new: Worker) -> None:
        self._events.on_worker_drained(old)
        self._state.workers[old.role] = new
        new.progress_s = self._state.clock.now()
        self.shut_down(old)

    def shut_down(self, worker: Worker) -> None:
        process = self._workers.get(worker.incarnation)
        if process is not None:
            process.shutdown_s = self._state.clock.now()
            self._state.transport.to_worker(worker.incarnation, wk.ToWorker(shutdown=wk.Shutdown()))

    def stalled_s(self, worker: Worker, has_work: bool) -> float:
        """Returns for how many seconds the worker has had work and shown no progress."""
        now = self._state.clock.now()
        if not has_work or not worker.ready:
            worker.progress_s = now
        return now - worker.progress_s

    def replace(self, worker: Worker, why: str) -> None:
        """Kills a worker's process, even a stopped one. The next round finds it dead and assigns its role to
        another."""
        process = self._workers.get(worker.incarnation)
        if process is not None and not process.dying:
            process.dying = True
            log.error("worker replaced", role=worker.role.name.lower(), incarnation=worker.incarnation, why=why)
            process.child.kill_faulty()

    # --- for others -------------------------------------------------------------------------------------------------

    def processes(self) -> Iterator[tuple[str, int, int]]:
        """Yields for each process what it is, its process id and its incarnation."""
        for incarnation, process in self._workers.items():
            yield self._label(process), process.child.pid, incarnation

    @property
    def captured(self) -> tuple[int, int]:
        """(captured, total) CUDA graphs of the workers that have reported them. (0, 0) once the server has served:
        nobody waits for graphs that a replacement or an idle worker captures."""
        reported = [] if self._served else [process.captured for process in self._workers.values()]
        return sum(done for done, _ in reported), sum(total for _, total in reported)

    def _label(self, process: WorkerProcess) -> str:
        if process.worker is None:
            return "spare"
        if process.shutdown_s is not None:
            return "retired"
        assigned = self._state.workers.get(process.worker.role) is process.worker
        return process.worker.role.name.lower() if assigned else "successor"

    def close(self) -> None:
        """Ends all worker processes."""
        for process in self._workers.values():
            self._children.reap(process.child)
        self._workers.clear()
