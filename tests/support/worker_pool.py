"""A worker pool on a stage: coordinator, pool and handovers are real, the test plays the processes."""

from __future__ import annotations

import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from semipd.coordinator.devices import ChosenDevice
from semipd.coordinator.mps import Mps
from semipd.coordinator.processes import ChildProcess, ChildProcesses
from semipd.coordinator.state import Worker
from semipd.coordinator.worker_pool import WorkerPool
from semipd.internal.v1 import worker_pb2 as wk
from semipd.memory.account import Role
from support.stage import Stage


class PlayedChild(ChildProcess):
    """A process that is only played. It ends when the test or the pool says so."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.code: int | None = None
        self.said: list[dict[str, Any]] = []
        """The events that it prints next."""
        self.lingers = False
        """True: a kill does not end it; it is there until the test gives it a code."""
        self.pidfd = self._fd = -1
        self._faulty = False

    @property
    def pid(self) -> int:
        return 1

    def events(self) -> list[dict[str, Any]]:
        said, self.said = self.said, []
        return said

    def exit_code(self) -> int | None:
        return self.code

    def kill(self) -> None:
        if self.code is None and not self.lingers:
            self.code = -signal.SIGKILL

    def close(self) -> None:
        self.kill()


class PlayedChildren(ChildProcesses):
    def __init__(self) -> None:
        self.run_dir = Path()
        self.started: dict[int, PlayedChild] = {}
        self.environments: list[Mapping[str, str] | None] = []

    def start(
        self, name: str, module: str, *arguments: str, environment: Mapping[str, str] | None = None
    ) -> ChildProcess:
        child = self.started[int(arguments[-1])] = PlayedChild(name)
        self.environments.append(environment)
        return child

    def reap(self, child: ChildProcess) -> None:
        child.close()


class PlayedMps(Mps):
    """A daemon that runs until the test says that it died."""

    kind = "own"

    def __init__(self) -> None:
        super().__init__(ChosenDevice("cpu", ""), Path())
        self.workers = {"CUDA_MPS_PIPE_DIRECTORY": "/run/mps"}
        self.died = False

    def poll(self) -> bool:
        died, self.died = self.died, False
        self.answers = self.answers and not died
        return died


class PoolStage(Stage):
    """A stage with a worker pool. Both workers are ready at the start and the spares have said hello, unless `settled`
    is False."""

    def __init__(self, partition: str = "mps", mps: Mps | None = None, *, settled: bool = True, **config: Any) -> None:
        super().__init__(partition=partition, **config)
        self.state.workers.clear()
        self.mps = mps or PlayedMps()
        self.children = PlayedChildren()
        self._said_ready: set[int] = set()
        self.pool = WorkerPool(self.state, self.children, self.coordinator, self.partition, self.mps)
        self.pool.start()
        if settled:
            self.settle()

    def round(self) -> None:
        """Does what the server's tick does, except receiving messages."""
        self.pool.poll()
        self.pool.assign_roles()
        self.coordinator.act()
        for role, worker in self.state.workers.items():
            if role is Role.PREFILL:
                self.prefill = worker
            else:
                self.decode = worker

    def settle(self) -> None:
        """Plays rounds in which every process says at once what it has to say: hello, and once it is assigned,
        ready."""
        for _ in range(8):
            self.hello()
            self.round()
            for incarnation in self.assigned():
                if incarnation not in self._said_ready:
                    self.ready(incarnation)

    def hello(self) -> None:
        for incarnation, child in self.children.started.items():
            if child.code is None:
                self.says(incarnation, hello=wk.WorkerHello())

    def says(self, incarnation: int, **message: Any) -> None:
        self.pool.on_message(incarnation, wk.FromWorker(**message))

    def ready(self, incarnation: int, step_rows: Sequence[int] = ()) -> None:
        self._said_ready.add(incarnation)
        self.says(incarnation, ready=wk.Ready(step_rows=step_rows))

    def assigned(self) -> dict[int, wk.Appoint]:
        """Returns the Appoint message of each process that lives and has got one."""
        found = {}
        for incarnation, child in self.children.started.items():
            for message in self.transport.worker[incarnation]:
                if message.HasField("appoint") and child.code is None:
                    found[incarnation] = message.appoint
        return found

    def told(self, worker: Worker, kind: str) -> bool:  # type: ignore[override]
        return any(m.HasField(kind) for m in self.transport.worker[worker.incarnation])

    def roles(self) -> list[str]:
        return sorted(title for title, _, _ in self.pool.processes())

    def child(self, worker: Worker) -> PlayedChild:
        return self.children.started[worker.incarnation]

    def end(self, worker: Worker, code: int = -signal.SIGKILL) -> None:
        self.child(worker).code = code
