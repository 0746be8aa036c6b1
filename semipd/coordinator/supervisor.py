"""Starts the other processes, watches them, and puts new ones in the place of the dead."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import structlog

from semipd.coordinator.console import ServeConsole
from semipd.coordinator.floor import Floor, Worker
from semipd.coordinator.partition import PartitionDesk
from semipd.coordinator.processes import Child
from semipd.core.errors import StartError
from semipd.internal.v1 import worker_pb2 as wk
from semipd.memory.account import Role
from semipd.memory.attach import AttachedAccount
from semipd.wire.sockets import RunDir

log = structlog.get_logger()

WIRE_ROLE = {Role.PREFILL: wk.WORKER_ROLE_PREFILL, Role.DECODE: wk.WORKER_ROLE_DECODE}
WORTH_A_NOTE_BYTES = 1_000_000_000
"""Of weights: below, hashing them takes no time that anybody notices."""
FAILED_STARTS = 5
"""Workers in a row that died before they were ready: more are tried, ever more slowly, but nobody waits for them."""


class Watch(Protocol):
    """The loop that wakes up when a descriptor is readable."""

    def watch(self, fd: int) -> None: ...
    def unwatch(self, fd: int) -> None: ...


class Events(Protocol):
    """What the coordinator does about the end of a process."""

    def worker_lost(self, worker: Worker, *, killed: bool) -> None: ...
    def workers_beyond_recovery(self) -> None: ...
    def gateway_lost(self, gateway: bytes) -> None: ...
    def resident_lost(self) -> None: ...


@dataclass(slots=True)
class WorkerProcess:
    child: Child
    said_hello: bool = False
    worker: Worker | None = None
    """None: it has no role yet (a spare)."""


class Supervisor:
    """`attend` does one round; everything else is told to it. Close it to end all the children."""

    def __init__(self, floor: Floor, run_dir: Path, watch: Watch, events: Events, partition: PartitionDesk) -> None:
        self._floor = floor
        self._run_dir = run_dir
        self._watch = watch
        self._events = events
        self._partition = partition
        self._resident: Child | None = None
        self._attached: AttachedAccount | None = None
        self._workers: dict[int, WorkerProcess] = {}
        self._gateways: dict[str, Child] = {}
        self._listening: dict[str, int] = {}
        self._gateway_incarnations: dict[str, int] = {}
        self._resident_incarnation = 0
        self._next_incarnation = 1
        self._failed_starts = 0
        self._not_before_s = 0.0
        self.on_port: Callable[[int], None] = lambda _port: None
        self.console: ServeConsole | None = None

    # --- starting ---------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """The resident, and at the same time what takes long to import; gateways last, their port is the open door."""
        self._start_resident()
        for _ in (Role.PREFILL, Role.DECODE):
            self._start_worker()
        for number in range(self._floor.config.gateways):
            self._start_gateway(f"gateway.{number}")

    def _start(self, name: str, module: str, *arguments: str) -> Child:
        child = Child(name, module, ["--run-dir", str(self._run_dir), *arguments])
        self._watch.watch(child.pidfd)
        self._watch.watch(child.out_fd)
        return child

    def _start_resident(self) -> None:
        self._resident_incarnation += 1
        self._resident = self._start("resident", "semipd.workers.resident")

    def _start_worker(self) -> None:
        incarnation, self._next_incarnation = self._next_incarnation, self._next_incarnation + 1
        child = self._start(f"worker.{incarnation}", "semipd.workers", "--incarnation", str(incarnation))
        self._workers[incarnation] = WorkerProcess(child)

    def _start_gateway(self, name: str) -> None:
        self._gateway_incarnations[name] = self._gateway_incarnations.get(name, 0) + 1
        self._gateways[name] = self._start(name, "semipd.gateway", "--name", name)

    # --- what the workers say ---------------------------------------------------------------------------------------

    def hello(self, incarnation: int) -> None:
        process = self._workers.get(incarnation)
        if process is not None:
            process.said_hello = True

    def ready(self, incarnation: int) -> None:
        process = self._workers.get(incarnation)
        if process is not None and process.worker is not None:
            process.worker.ready = True
            process.worker.progress_s = self._floor.clock.now()
            self._failed_starts = 0
            log.info("worker ready", role=process.worker.role.name.lower(), incarnation=incarnation)

    def in_office(self, incarnation: int) -> Worker | None:
        """The worker of that incarnation, if it has a role now. What others still say is not listened to."""
        process = self._workers.get(incarnation)
        return process.worker if process is not None else None

    # --- watching ---------------------------------------------------------------------------------------------------

    def attend(self) -> None:
        """Hears the children, notices the dead, and fills what is vacant. Raises StartError where there is no way."""
        self._attend_resident()
        for incarnation, process in list(self._workers.items()):
            process.child.events()
            if process.child.exit_code() is not None:
                self._bury_worker(incarnation, process)
        for name, gateway in list(self._gateways.items()):
            self._attend_gateway(name, gateway)
        self._fill_vacancies()

    def _attend_resident(self) -> None:
        resident = self._resident
        if resident is None:
            return
        for event in resident.events():
            self._resident_said(event)
        code = resident.exit_code()
        if code is None:
            return
        self._bury(resident)
        self._resident = None
        if self._attached is None:
            raise StartError(f"the resident process ended with code {code} before it was ready")
        log.error("resident lost: weights and KV are gone, starting cold", exit_code=code)
        self._attached.close()
        self._attached = None
        self._events.resident_lost()
        self._floor.account = None
        for process in self._workers.values():
            if process.worker is not None:
                process.child.kill()
        self._start_resident()

    def _resident_said(self, event: dict[str, Any]) -> None:
        if event.get("event") == "loading" and self.console is not None:
            self.console.loading(int(event["done"]), int(event["total"]))
        elif event.get("event") == "hashing" and event["done"] == 0 and event["total"] > WORTH_A_NOTE_BYTES:
            log.info("hashing the weights", bytes=event["total"])
        elif event.get("event") == "failed":
            raise StartError(str(event["error"]))
        elif event.get("event") == "ready":
            self._attached = AttachedAccount(RunDir(self._run_dir).resident_socket)
            self._floor.account = self._attached.account
            log.info("resident ready", **{k: v for k, v in event.items() if k != "event"})

    def _attend_gateway(self, name: str, gateway: Child) -> None:
        for event in gateway.events():
            if event.get("event") == "listening":
                self._listening[name] = int(event["port"])
                self.on_port(self._listening[name])
            elif event.get("event") == "failed":
                raise StartError(str(event["error"]))
        if gateway.exit_code() is None:
            return
        log.error("gateway lost", gateway=name, exit_code=gateway.exit_code())
        was_listening = self._listening.pop(name, None) is not None
        self._bury(gateway)
        if not was_listening:
            raise StartError(f"{name} ended with code {gateway.exit_code()} before it listened")
        self._events.gateway_lost(name.encode())
        self._start_gateway(name)

    def _bury_worker(self, incarnation: int, process: WorkerProcess) -> None:
        del self._workers[incarnation]
        code, killed = process.child.exit_code(), process.child.killed
        self._bury(process.child)
        worker = process.worker
        log.warning("worker process ended", incarnation=incarnation, exit_code=code)
        if worker is None or not worker.ready:
            self._failed_starts += 1
            self._not_before_s = self._floor.clock.now() + min(30.0, 0.1 * 2**self._failed_starts)
        if worker is not None:
            if self._floor.workers.get(worker.role) is worker:
                del self._floor.workers[worker.role]
            self._floor.metrics.restarted(worker.role.name.lower())
            self._events.worker_lost(worker, killed=killed)
        if self._failed_starts >= FAILED_STARTS:
            self._events.workers_beyond_recovery()

    def _bury(self, child: Child) -> None:
        self._watch.unwatch(child.pidfd)
        self._watch.unwatch(child.out_fd)
        child.close()

    def _fill_vacancies(self) -> None:
        """Gives roles to processes that have none, and starts processes where too few are left for the rest."""
        if self._floor.account is None:
            return
        vacant = [role for role in (Role.DECODE, Role.PREFILL) if role not in self._floor.workers]
        free = [(number, p) for number, p in self._workers.items() if p.worker is None]
        for role, (incarnation, process) in zip(list(vacant), [f for f in free if f[1].said_hello], strict=False):
            process.worker = Worker(role, incarnation, progress_s=self._floor.clock.now())
            self._floor.workers[role] = process.worker
            appoint = wk.Appoint(role=WIRE_ROLE[role], cpus=self._partition.cpus(role))
            self._floor.post.to_worker(incarnation, wk.ToWorker(appoint=appoint))
            vacant.remove(role)
            free.remove((incarnation, process))
        both_ready = all(self._floor.ready_worker(role) for role in (Role.PREFILL, Role.DECODE))
        wanted = len(vacant) + (self._floor.config.spare_worker and both_ready)
        if len(free) < wanted and self._floor.clock.now() >= self._not_before_s:
            self._start_worker()

    def stalled_s(self, worker: Worker, has_work: bool) -> float:
        """For how long it has had work and shown no progress."""
        now = self._floor.clock.now()
        if not has_work or not worker.ready:
            worker.progress_s = now
        return now - worker.progress_s

    def replace(self, worker: Worker, why: str) -> None:
        """Ends its process; the next round finds it dead and appoints another. A stopped process dies too."""
        process = self._workers.get(worker.incarnation)
        if process is not None:
            log.error("worker replaced", role=worker.role.name.lower(), incarnation=worker.incarnation, why=why)
            process.child.abandon()

    # --- for others -------------------------------------------------------------------------------------------------

    @property
    def listening(self) -> bool:
        """Whether every gateway has its port."""
        return len(self._listening) == self._floor.config.gateways

    def roll(self) -> Iterator[tuple[str, int, int]]:
        """Role, process id and incarnation of every child."""
        if self._resident is not None:
            yield "resident", self._resident.pid, self._resident_incarnation
        for incarnation, process in self._workers.items():
            yield (process.worker.role.name.lower() if process.worker else "spare"), process.child.pid, incarnation
        for name, gateway in self._gateways.items():
            yield "gateway", gateway.pid, self._gateway_incarnations[name]

    def close(self) -> None:
        """Ends the children: gateways first, so that streams close in order; then the rest."""
        gateways, self._gateways = list(self._gateways.values()), {}
        for gateway in gateways:
            gateway.terminate()
        for gateway in gateways:
            gateway.wait(3.0)
        others = [p.child for p in self._workers.values()] + ([self._resident] if self._resident else [])
        for child in [*gateways, *others]:
            self._bury(child)
        self._workers.clear()
        self._resident = None
        if self._attached is not None:
            self._attached.close()
            self._attached = None
