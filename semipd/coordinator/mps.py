"""MPS, with which two processes compute on one GPU at once: a daemon of the server's own, another's daemon, or none.

Workers are its clients. The resident never is one: a fault of one MPS client ends all clients, and weights and KV must
outlive that. So the resident (and without MPS every process) is pointed at a pipe directory where no daemon answers.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

import structlog

from semipd.coordinator.devices import VISIBLE, Choice, ChosenDevice
from semipd.coordinator.mps_guard import MPS_CONTROL
from semipd.coordinator.processes import ChildProcess
from semipd.core.clock import Clock
from semipd.core.errors import ConfigError, StartError

log = structlog.get_logger()

PIPES = "CUDA_MPS_PIPE_DIRECTORY"
LOGS = "CUDA_MPS_LOG_DIRECTORY"
START_S = 10.0
"""Seconds for a daemon to answer after its start."""
ASK_S = 5.0
"""Seconds for a daemon to answer a question."""


class Mps:
    """No MPS. The other two kinds override what they do differently. Close it after its clients have ended."""

    kind = "off"
    answers = True
    """True while a worker may open the device."""

    def __init__(self, device: ChosenDevice, folder: Path) -> None:
        """`folder` is private. Its path is short, because sockets lie in it."""
        self.outside: Mapping[str, str] = {}
        """Environment of processes that are not clients of the daemon."""
        if device.kind == "cuda":
            nobody = folder / "no-mps"
            nobody.mkdir(exist_ok=True)
            pin = {VISIBLE: device.pin} if device.pin else {}
            self.outside = {PIPES: str(nobody), **pin}
        self.workers: Mapping[str, str] = self.outside
        """Environment of the workers."""

    @property
    def shared(self) -> bool:
        """True if the workers are clients of one MPS server, so that the fault of one ends the other."""
        return self.kind != "off"

    def start(self) -> None:
        """Makes MPS available. Raises StartError or ConfigError where that fails."""

    def poll(self) -> bool:
        """Returns whether the daemon ended since the last call; its clients' contexts are gone with it. Called each
        tick."""
        return False

    def close(self) -> None: ...

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class AdoptedMps(Mps):
    """Uses a daemon that somebody else runs."""

    kind = "adopt"

    def __init__(self, device: ChosenDevice, folder: Path, pipes: str) -> None:
        super().__init__(device, folder)
        self._pipes = pipes
        self.workers = {**self.outside, PIPES: pipes}

    def start(self) -> None:
        if not is_there(self._pipes):
            raise ConfigError(f"--mps adopt: no MPS daemon answers in {self._pipes}")


class OwnMps(Mps):
    """Runs a daemon that lives and dies with the server. If it ends it is started again, ever more slowly."""

    kind = "own"

    def __init__(self, device: ChosenDevice, folder: Path, clock: Clock) -> None:
        super().__init__(device, folder)
        self.answers = False
        self._clock = clock
        self._pipes, self._logs = folder / "mps", folder / "mps-log"
        self._logs.mkdir()
        self.workers = {**self.outside, PIPES: str(self._pipes)}
        self._child: ChildProcess | None = None
        self._started_s = 0.0
        self._failures = 0
        self._retry_at_s = 0.0

    @property
    def pid(self) -> int | None:
        """Process id of the daemon's guard. None: the daemon has ended and was not started again yet."""
        return self._child.pid if self._child else None

    def start(self) -> None:
        """Starts the daemon and waits until it answers."""
        self._launch()
        while not self.answers:
            if self.poll():
                raise StartError(f"the MPS daemon did not start: {self._last_words()}")
            time.sleep(0.01)

    def poll(self) -> bool:
        child, now = self._child, self._clock.now()
        if child is None:
            if now >= self._retry_at_s:
                self._launch()
            return False
        if child.exit_code() is None:
            self._check_answer(child, now)
            return False
        log.error("the MPS daemon ended", exit_code=child.exit_code(), last_words=self._last_words())
        child.close()
        self._child, self.answers = None, False
        self._failures += 1
        self._retry_at_s = now + min(30.0, 0.05 * 2**self._failures)
        return True

    def _check_answer(self, child: ChildProcess, now: float) -> None:
        if self.answers:
            return
        self.answers = (self._pipes / "control").exists()
        if self.answers:
            self._failures = 0
            log.info("the MPS daemon answers", pipes=str(self._pipes))
        elif now - self._started_s > START_S:
            child.terminate()  # the next poll finds it ended

    def _launch(self) -> None:
        shutil.rmtree(self._pipes, ignore_errors=True)  # a daemon that was killed left it behind
        self._pipes.mkdir()
        environment = {**self.workers, LOGS: str(self._logs)}
        self._child = ChildProcess("mps", "semipd.coordinator.mps_guard", [str(self._logs / "daemon")], environment)
        self._started_s = self._clock.now()

    def _last_words(self) -> str:
        found = [p.read_text(errors="replace").strip() for p in sorted(self._logs.iterdir()) if p.is_file()]
        lines = [text.splitlines()[-1] for text in found if text]
        return "; ".join(lines) or "it said nothing"

    def close(self) -> None:
        if self._child is not None:
            self._child.terminate()
            self._child.wait(3.0)
            self._child.close()
            self._child = None
        self.answers = False


def is_there(pipes: str) -> bool:
    """Returns whether an MPS daemon answers in that pipe directory. Waits for its answer."""
    try:
        asked = subprocess.run(
            [MPS_CONTROL],
            input=b"get_server_list\n",
            capture_output=True,
            timeout=ASK_S,
            check=False,
            env={**os.environ, PIPES: pipes},
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return asked.returncode == 0 and b"Cannot find" not in asked.stdout + asked.stderr


def open_mps(
    choice: Choice, device: ChosenDevice, folder: Path, clock: Clock, *, required: bool = True
) -> tuple[Mps, Choice]:
    """Starts the chosen kind of MPS and returns it with the choice. Where that fails, raises StartError or ConfigError
    if it is `required`, and else returns no MPS and the reason."""
    if choice.name == "off":
        return Mps(device, folder), choice
    mps = OwnMps(device, folder, clock) if choice.name == "own" else AdoptedMps(device, folder, os.environ[PIPES])
    try:
        mps.start()
    except StartError as error:
        mps.close()
        if required:
            raise
        return Mps(device, folder), Choice("off", str(error), degraded=True)
    return mps, choice
