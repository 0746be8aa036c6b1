"""Starts the other processes, watches them, and puts new ones in the place of the dead."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import structlog

from semipd.coordinator import worker_pool
from semipd.coordinator.console import ServeConsole
from semipd.coordinator.mps import Mps
from semipd.coordinator.partition import PartitionController
from semipd.coordinator.processes import Child, Children
from semipd.coordinator.state import CoordinatorState
from semipd.coordinator.worker_pool import WorkerPool
from semipd.core.errors import StartError
from semipd.memory.attach import AttachedAccount
from semipd.wire.sockets import RunDir

log = structlog.get_logger()

WORTH_A_NOTE_BYTES = 1_000_000_000
"""Of weights: below, hashing them takes no time that anybody notices."""


class Events(worker_pool.Events, Protocol):
    """What the coordinator does about the end of a process."""

    def gateway_lost(self, gateway: bytes) -> None: ...
    def resident_lost(self) -> None: ...


class Supervisor:
    """`attend` does one round; everything else is told to it. Close it to end all the children."""

    def __init__(
        self,
        state: CoordinatorState,
        run_dir: Path,
        children: Children,
        events: Events,
        partition: PartitionController,
        mps: Mps,
    ) -> None:
        self._state = state
        self._run_dir = run_dir
        self._children = children
        self._events = events
        self._partition = partition
        self._mps = mps
        self.pool = WorkerPool(state, children, events, partition, mps)
        self._resident: Child | None = None
        self._attached: AttachedAccount | None = None
        self._gateways: dict[str, Child] = {}
        self._listening: dict[str, int] = {}
        self._gateway_incarnations: dict[str, int] = {}
        self._resident_incarnation = 0
        self._told_captured = (0, 0)
        self.on_port: Callable[[int], None] = lambda _port: None
        self.console: ServeConsole | None = None

    # --- starting ---------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """The resident, and at the same time what takes long to import; gateways last, their port is the open door."""
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

    def attend(self) -> None:
        """Hears the children, notices the dead, and fills what is vacant. Raises StartError where there is no way."""
        self._attend_resident()
        self.pool.attend()
        self._tell_captured()
        for name, gateway in list(self._gateways.items()):
            self._attend_gateway(name, gateway)
        self.pool.fill_vacancies()

    def _attend_resident(self) -> None:
        resident = self._resident
        if resident is None:
            return
        for event in resident.events():
            self._resident_said(event)
        code = resident.exit_code()
        if code is None:
            return
        self._children.bury(resident)
        self._resident = None
        if self._attached is None:
            raise StartError(f"the resident process ended with code {code} before it was ready")
        log.error("resident lost: weights and KV are gone, starting cold", exit_code=code)
        self._events.resident_lost()  # while the account is mapped: ending a request looks up whose its pages are
        self._state.account = self._state.control = None
        self._attached.close()
        self._attached = None
        self._state.quarantine.forget()
        self.pool.end_clients(abandoned=False)
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
            self._state.account = self._attached.account
            self._state.control = self._attached.control
            self._partition.device_known(int(event.get("sms", 0)))
            log.info("resident ready", **{k: v for k, v in event.items() if k != "event"})

    def _tell_captured(self) -> None:
        done, total = self.pool.captured
        if self.console is not None and total and (done, total) != self._told_captured:
            self._told_captured = done, total
            self.console.capturing(done, total)

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
        del self._gateways[name]
        self._children.bury(gateway)
        if not was_listening:
            raise StartError(f"{name} ended with code {gateway.exit_code()} before it listened")
        self._events.gateway_lost(name.encode())
        self._start_gateway(name)

    # --- for others -------------------------------------------------------------------------------------------------

    @property
    def listening(self) -> bool:
        """Whether every gateway has its port."""
        return len(self._listening) == self._state.config.gateways

    def roll(self) -> Iterator[tuple[str, int, int]]:
        """Role, process id and incarnation of every child."""
        if self._resident is not None:
            yield "resident", self._resident.pid, self._resident_incarnation
        yield from self.pool.roll()
        for name, gateway in self._gateways.items():
            yield "gateway", gateway.pid, self._gateway_incarnations[name]

    def close(self) -> None:
        """Ends the children: gateways first, so that streams close in order; then the rest."""
        gateways, self._gateways = list(self._gateways.values()), {}
        for gateway in gateways:
            gateway.terminate()
        for gateway in gateways:
            gateway.wait(3.0)
        for gateway in gateways:
            self._children.bury(gateway)
        self.pool.close()
        if self._resident is not None:
            self._children.bury(self._resident)
            self._resident = None
        if self._attached is not None:
            self._attached.close()
            self._attached = None
