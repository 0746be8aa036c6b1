"""Starts the other processes of the server, watches them, and replaces those that die."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol

import structlog

from semipd.coordinator.console import ServeConsole
from semipd.coordinator.mps import Mps
from semipd.coordinator.partition import PartitionController
from semipd.coordinator.processes import ChildProcess, ChildProcesses
from semipd.coordinator.state import CoordinatorState
from semipd.coordinator.worker_pool import WorkerPool
from semipd.core.errors import StartError
from semipd.memory.attach import AttachedAccount
from semipd.wire.sockets import RunDir

log = structlog.get_logger()

WORTH_A_NOTE_BYTES = 1_000_000_000
"""Bytes of weights above which their hashing takes long enough to be logged."""


class ProcessEvents(Protocol):
    """The coordinator's reactions to the end of processes that are no workers."""

    def on_gateway_lost(self, gateway: bytes) -> None: ...
    def on_resident_lost(self) -> None: ...


class Supervisor:
    """Looks after all child processes. `poll` does one round. Close it to end all the children."""

    def __init__(
        self,
        state: CoordinatorState,
        children: ChildProcesses,
        pool: WorkerPool,
        events: ProcessEvents,
        partition: PartitionController,
        mps: Mps,
        console: ServeConsole,
        on_port: Callable[[int], None],
    ) -> None:
        """`on_port` is called with a gateway's port when it listens."""
        self._state = state
        self._children = children
        self._events = events
        self._partition = partition
        self._mps = mps
        self._console = console
        self._on_port = on_port
        self.pool = pool
        self._resident: ChildProcess | None = None
        self._attached: AttachedAccount | None = None
        self._gateways: dict[str, ChildProcess] = {}
        self._listening: dict[str, int] = {}
        self._gateway_incarnations: dict[str, int] = {}
        self._resident_incarnation = 0
        self._shown_captured = (0, 0)

    # --- starting ---------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Starts the resident, the workers, whose imports take long, and then the gateways, which open the port."""
        self._start_resident()
        self.pool.start()
        for number in range(self._state.config.gateways):
            self._start_gateway(f"gateway.{number}")

    def _start_resident(self) -> None:
        self._resident_incarnation += 1
        self._resident = self._children.start("resident", "semipd.workers.resident", environment=self._mps.outside)

    def _start_gateway(self, name: str) -> None:
        self._gateway_incarnations[name] = self._gateway_incarnations.get(name, 0) + 1
        self._gateways[name] = self._children.start(name, "semipd.gateway", "--name", name)

    # --- watching ---------------------------------------------------------------------------------------------------

    def poll(self) -> None:
        """Reads the children's events and replaces those that ended. Raises StartError where the server can't start."""
        self._poll_resident()
        self.pool.poll()
        self._show_captured()
        for name, gateway in list(self._gateways.items()):
            self._poll_gateway(name, gateway)
        self.pool.assign_roles()

    def _poll_resident(self) -> None:
        resident = self._resident
        if resident is None:
            return
        for event in resident.events():
            self._on_resident_event(event)
        code = resident.exit_code()
        if code is None:
            return
        self._children.reap(resident)
        self._resident = None
        if self._attached is None:
            raise StartError(f"the resident process ended with code {code} before it was ready")
        log.error("resident lost: weights and KV are gone, starting cold", exit_code=code)
        self._events.on_resident_lost()  # while the account is mapped: to fail a request looks up who holds its pages
        self._state.account = self._state.control = None
        self._attached.close()
        self._attached = None
        self._state.quarantine.forget()
        self.pool.end_clients(faulty=False)
        self._start_resident()

    def _on_resident_event(self, event: dict[str, Any]) -> None:
        if event.get("event") == "loading":
            self._console.loading(int(event["done"]), int(event["total"]))
        elif event.get("event") == "hashing" and event["done"] == 0 and event["total"] > WORTH_A_NOTE_BYTES:
            log.info("hashing the weights", bytes=event["total"])
        elif event.get("event") == "failed":
            raise StartError(str(event["error"]))
        elif event.get("event") == "ready":
            self._attached = AttachedAccount(RunDir(self._children.run_dir).resident_socket)
            self._state.account = self._attached.account
            self._state.control = self._attached.control
            self._partition.device_known(int(event.get("sms", 0)))
            log.info("resident ready", **{k: v for k, v in event.items() if k != "event"})

    def _show_captured(self) -> None:
        done, total = self.pool.captured
        if total and (done, total) != self._shown_captured:
            self._shown_captured = done, total
            self._console.capturing(done, total)

    def _poll_gateway(self, name: str, gateway: ChildProcess) -> None:
        for event in gateway.events():
            if event.get("event") == "listening":
                self._listening[name] = int(event["port"])
                self._on_port(self._listening[name])
            elif event.get("event") == "failed":
                raise StartError(str(event["error"]))
        if gateway.exit_code() is None:
            return
        log.error("gateway lost", gateway=name, exit_code=gateway.exit_code())
        was_listening = self._listening.pop(name, None) is not None
        del self._gateways[name]
        self._children.reap(gateway)
        if not was_listening:
            raise StartError(f"{name} ended with code {gateway.exit_code()} before it listened")
        self._events.on_gateway_lost(name.encode())
        self._start_gateway(name)

    # --- for others -------------------------------------------------------------------------------------------------

    @property
    def listening(self) -> bool:
        """True if every gateway has its port."""
        return len(self._listening) == self._state.config.gateways

    def processes(self) -> Iterator[tuple[str, int, int]]:
        """Yields what each child is, its process id and its incarnation."""
        if self._resident is not None:
            yield "resident", self._resident.pid, self._resident_incarnation
        yield from self.pool.processes()
        for name, gateway in self._gateways.items():
            yield "gateway", gateway.pid, self._gateway_incarnations[name]

    def close(self) -> None:
        """Ends the children. Gateways end first, so that they can close their streams in order."""
        gateways, self._gateways = list(self._gateways.values()), {}
        for gateway in gateways:
            gateway.terminate()
        for gateway in gateways:
            gateway.wait(3.0)
        for gateway in gateways:
            self._children.reap(gateway)
        self.pool.close()
        if self._resident is not None:
            self._children.reap(self._resident)
            self._resident = None
        if self._attached is not None:
            self._attached.close()
            self._attached = None
