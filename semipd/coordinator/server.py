"""The coordinator's process, which is the server, from its start to its end."""

from __future__ import annotations

import math
import os
import shutil
import signal
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import FrameType

import structlog
import zmq

from semipd.coordinator.console import ServeConsole
from semipd.coordinator.coordinator import Coordinator
from semipd.coordinator.devices import Choice, ChosenDevice, choose_backend, choose_device, choose_mps
from semipd.coordinator.latency import choose_latency_model
from semipd.coordinator.metrics import Metrics
from semipd.coordinator.mps import PIPES, Mps, open_mps
from semipd.coordinator.mps_guard import MPS_CONTROL
from semipd.coordinator.partition import PartitionController
from semipd.coordinator.policy_host import PolicyHost
from semipd.coordinator.processes import ChildProcesses
from semipd.coordinator.requests import RequestTable
from semipd.coordinator.state import CoordinatorState
from semipd.coordinator.supervisor import Supervisor
from semipd.coordinator.transport import ZmqTransport
from semipd.coordinator.worker_pool import WorkerPool
from semipd.core.clock import SystemClock
from semipd.core.config import ServerConfig, resolve
from semipd.core.latency import LatencyModel
from semipd.memory.account import Role
from semipd.policies.registry import make_policy
from semipd.profiles.find import FoundModel
from semipd.wire.logging import configure_logging
from semipd.wire.process import freeze_start_up_objects
from semipd.wire.sockets import RunDir, private_folder

log = structlog.get_logger()

LONGEST_WAIT_S = 0.1
"""Seconds between two looks at what no descriptor announces: stalls, and time limits that pass."""


def serve(config: ServerConfig, console: ServeConsole) -> int:
    """Runs a server until SIGTERM or SIGINT, and returns the exit code. The first signal drains it, the second ends it
    at once.

    Raises ConfigError and StartError where it can't start. To be called in the main thread.
    """
    device = choose_device(config.device)
    kind = choose_mps(config.mps, device, shutil.which(MPS_CONTROL), os.environ.get(PIPES))
    cpus = sorted(os.sched_getaffinity(0))
    choose_backend(config.partition, device, kind, cpus)  # refuses an impossible choice before anything is started
    model = choose_latency_model(config, device, len(cpus))
    config = resolve(config, device.kind)
    configure_logging(config, "coordinator")
    with ExitStack() as stack:
        run_dir = stack.enter_context(private_folder())
        mps, kind = open_mps(kind, device, run_dir, SystemClock(), required=config.mps != "auto")
        stack.push(mps)
        backend = choose_backend(config.partition, device, kind, cpus)
        config = replace(config, partition=backend.name, mps=kind.name)
        _announce(console, device, backend, kind)
        _announce_model(console, model)
        RunDir(run_dir).keep(config.to_json())
        transport = stack.enter_context(ZmqTransport(RunDir(run_dir)))
        signals = stack.enter_context(Signals())
        server = CoordinatorServer(config, run_dir, transport, signals, console, mps, model.latency)
        stack.callback(server.close)
        return server.run()


def _announce(console: ServeConsole, device: ChosenDevice, backend: Choice, mps: Choice) -> None:
    """Says which device is used, how it is divided and why."""
    shared = {"own": "MPS: our own daemon", "adopt": "MPS: adopted", "off": "no MPS"}[mps.name]
    console.note(f"{device}, partition {backend.name} ({backend.why})" + (f", {shared}" if device.gpu else ""))
    log.info(
        "device", device=str(device), why=device.why, partition=backend.name, partition_why=backend.why, mps=mps.name
    )
    for choice in (mps, backend):
        if choice.degraded:
            log.warning("the GPU is not used as well as it could be", choice=choice.name, why=choice.why)
    if device.gpu and mps.name == "off":
        console.note(f"WARNING: without MPS prefill and decode take turns on the GPU ({mps.why})")


def _announce_model(console: ServeConsole, model: FoundModel) -> None:
    """Says what policies take passes and steps to last, where that comes from and why."""
    console.note(f"latency model: {model.source} ({model.why})")
    log.info("latency model", source=model.source, why=model.why, measured=model.measured)
    for warning in model.warnings:
        log.warning("latency profile", problem=warning)


class Signals:
    """Counts SIGTERM and SIGINT. `fd` becomes readable with each."""

    def __init__(self) -> None:
        self.count = 0
        self._read, self._write = socket.socketpair()
        self._read.setblocking(False)
        self._write.setblocking(False)

    @property
    def fd(self) -> int:
        return self._read.fileno()

    def drain(self) -> None:
        try:
            self._read.recv(4096)
        except BlockingIOError:
            return

    def _received(self, _signal: int, _frame: FrameType | None) -> None:
        self.count += 1

    def __enter__(self) -> Signals:
        self._previous = [(s, signal.signal(s, self._received)) for s in (signal.SIGTERM, signal.SIGINT)]
        self._previous_fd = signal.set_wakeup_fd(self._write.fileno(), warn_on_full_buffer=False)
        return self

    def __exit__(self, *_: object) -> None:
        signal.set_wakeup_fd(self._previous_fd)
        for number, handler in self._previous:
            signal.signal(number, handler)
        self._read.close()
        self._write.close()


class CoordinatorServer:
    """The loop around the coordinator: sockets, processes and signals."""

    def __init__(
        self,
        config: ServerConfig,
        run_dir: Path,
        transport: ZmqTransport,
        signals: Signals,
        console: ServeConsole,
        mps: Mps,
        latency: LatencyModel,
    ) -> None:
        self._config = config
        self._run_dir = run_dir
        self._transport = transport
        self._signals = signals
        self._console = console
        self._clock = SystemClock()
        self._poller = zmq.Poller()
        metrics = Metrics()
        state = CoordinatorState(config, self._clock, transport, RequestTable(config.max_waiting), metrics, latency)
        self._state = state
        policy = make_policy(config.policy, config.policy_options)

        def policy_failed(name: str, why: str) -> None:
            metrics.policy_failures.labels(name).inc()
            console.note(f"policy {name} {why}; {host.name} takes its place")

        host = PolicyHost(policy, config.policy_budget_s, policy_failed)
        partition = PartitionController(state)
        model = config.served_model_name or (Path(config.model).resolve().name if config.model else "bundled")
        self._coordinator = Coordinator(state, host, partition, model, self._processes)
        children = ChildProcesses(run_dir, self)
        pool = WorkerPool(state, children, self._coordinator, partition, mps)
        self._supervisor = Supervisor(state, children, pool, self._coordinator, partition, mps, console, self._on_port)
        self._address = ""
        self._announced = False
        self._drain_until_s: float | None = None
        self._lacking_since_s: float | None = None

    def watch(self, fd: int) -> None:
        self._poller.register(fd, zmq.POLLIN)

    def unwatch(self, fd: int) -> None:
        self._poller.unregister(fd)

    def _processes(self) -> Iterator[tuple[str, int, int]]:
        yield "coordinator", os.getpid(), 1
        yield from self._supervisor.processes()

    def _on_port(self, port: int) -> None:
        """Keeps the port of a gateway, so that a gateway that is started again gets the same one."""
        self._address = f"{self._config.host}:{port}"
        self._config = replace(self._config, port=port)
        RunDir(self._run_dir).keep(self._config.to_json())

    def run(self) -> int:
        """Serves until the server is told to end and is drained, and returns the exit code."""
        if self._config.metrics_port >= 0:
            port = self._state.metrics.serve(self._config.metrics_port)
            self._console.note(f"metrics at http://127.0.0.1:{port}/metrics")
        for socket_ in (self._transport.gateways, self._transport.workers):
            self._poller.register(socket_, zmq.POLLIN)
        self.watch(self._signals.fd)
        self._supervisor.start()
        while not self._over():
            self._tick()
        self._coordinator.end_all_for_shutdown()
        self._transport.flush()
        return 0

    def _tick(self) -> None:
        coordinator = self._coordinator
        self._poller.poll(self._wait_ms())
        self._signals.drain()
        for incarnation, message in self._transport.from_workers():
            self._supervisor.pool.on_message(incarnation, message)
        self._transport.flush()  # tokens wait neither for new requests nor for the policy
        for gateway, request in self._transport.from_gateways():
            coordinator.on_gateway_message(gateway, request)
        self._supervisor.poll()
        self._check_progress()
        coordinator.act()
        self._transport.flush()

    def _wait_ms(self) -> int:
        now = self._clock.now()
        moments = [now + LONGEST_WAIT_S, *self._coordinator.next_moment()]
        return math.ceil(max(0.0, min(moments) - now) * 1000)

    def _check_progress(self) -> None:
        """Ties health to progress: if a worker has work and makes no progress, the server is first not serving, and
        then the worker is replaced."""
        why = self._lacking()
        for role, worker in list(self._state.workers.items()):
            stalled_s = self._supervisor.pool.stalled_s(worker, self._coordinator.has_work(role))
            if stalled_s > self._config.stall_replace_s:
                self._supervisor.pool.replace(worker, f"no progress for {stalled_s:.1f} s")
            if stalled_s > self._config.stall_unhealthy_s:
                why = f"the {role.name.lower()} worker makes no progress"
        if self._state.draining:
            why = "the server is shutting down"
        self._coordinator.tell_state(serving=not why, reason=why)
        if not why and not self._announced:
            self._announced = True
            freeze_start_up_objects()
            self._console.ready(self._address)

    def _lacking(self) -> str:
        """Says what the server lacks to serve. Empty: nothing, or a worker for less than `stall_unhealthy_s`."""
        if self._state.account is None:
            return "the model is being loaded"
        if not self._supervisor.listening:
            return "a gateway is starting"
        workers = self._state.workers
        lacking = [r for r in (Role.PREFILL, Role.DECODE) if r not in workers or not workers[r].ready]
        now = self._clock.now()
        if not lacking:
            self._lacking_since_s = None
            return ""
        if self._lacking_since_s is None:
            self._lacking_since_s = now
        if self._announced and now - self._lacking_since_s < self._config.stall_unhealthy_s:
            return ""
        return f"no {lacking[0].name.lower()} worker is ready"

    def _over(self) -> bool:
        if self._signals.count == 0:
            return False
        if self._drain_until_s is None:
            self._drain_until_s = self._clock.now() + self._config.drain_timeout_s
            self._state.draining = True
            alive = len(self._state.requests)
            if alive:
                self._console.note(f"draining: {alive} requests are running; another signal ends them at once")
        if self._signals.count > 1:
            return True
        return len(self._state.requests) == 0 or self._clock.now() >= self._drain_until_s

    def close(self) -> None:
        self._supervisor.close()
