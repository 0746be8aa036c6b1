"""MPS, by which two processes compute on one GPU at once: a daemon of our own, one that is there, or none.

Workers are its clients. The resident never is: an MPS client's fault takes all clients with it, and weights and KV must
outlive that. So the resident (and without MPS every process) is pointed at a pipe directory where nobody answers.
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

from semipd.coordinator.devices import VISIBLE, Chosen, Device
from semipd.coordinator.mps_guard import MPS_CONTROL
from semipd.coordinator.processes import Child
from semipd.core.clock import Clock
from semipd.core.errors import ConfigError, StartError

log = structlog.get_logger()

PIPES = "CUDA_MPS_PIPE_DIRECTORY"
LOGS = "CUDA_MPS_LOG_DIRECTORY"
START_S = 10.0
"""For a daemon to answer."""
ASK_S = 5.0


class Mps:
    """None, and what the other two are beyond that. Close it after its clients have ended."""

    kind = "off"
    answers = True
    """Whether a worker may open the device now."""

    def __init__(self, device: Device, folder: Path) -> None:
        """`folder`: private, and short: there are sockets in it."""
        self.outside: Mapping[str, str] = {}
        """Environment of processes that are no clients."""
        if device.kind == "cuda":
            nobody = folder / "no-mps"
            nobody.mkdir(exist_ok=True)
            pin = {VISIBLE: device.pin} if device.pin else {}
            self.outside = {PIPES: str(nobody), **pin}
        self.workers: Mapping[str, str] = self.outside
        """Environment of the workers."""

    @property
    def shared(self) -> bool:
        """Whether the workers are clients of one server, so that one's fault is the other's end."""
        return self.kind != "off"

    def start(self) -> None:
        """Raises StartError, or ConfigError, where it can't be had."""

    def attend(self) -> bool:
        """Called each tick. Whether the daemon ended since the last call, and with it whatever its clients had."""
        return False

    def close(self) -> None: ...

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class AdoptedMps(Mps):
    """A daemon that somebody else runs."""

    kind = "adopt"

    def __init__(self, device: Device, folder: Path, pipes: str) -> None:
        super().__init__(device, folder)
        self._pipes = pipes
        self.workers = {**self.outside, PIPES: pipes}

    def start(self) -> None:
        if not is_there(self._pipes):
            raise ConfigError(f"--mps adopt: no MPS daemon answers in {self._pipes}")


class OwnMps(Mps):
    """A daemon that lives and dies with the server. One that ends is started again, ever more slowly."""

    kind = "own"

    def __init__(self, device: Device, folder: Path, clock: Clock) -> None:
        super().__init__(device, folder)
        self.answers = False
        self._clock = clock
        self._pipes, self._logs = folder / "mps", folder / "mps-log"
        self._logs.mkdir()
        self.workers = {**self.outside, PIPES: str(self._pipes)}
        self._child: Child | None = None
        self._started_s = 0.0
        self._failures = 0
        self._not_before_s = 0.0

    @property
    def pid(self) -> int | None:
        """Of the process that guards the daemon."""
        return self._child.pid if self._child else None

    def start(self) -> None:
        """Waits until the daemon answers."""
        self._launch()
        while not self.answers:
            if self.attend():
                raise StartError(f"the MPS daemon did not start: {self._last_words()}")
            time.sleep(0.01)

    def attend(self) -> bool:
        child, now = self._child, self._clock.now()
        if child is None:
            if now >= self._not_before_s:
                self._launch()
            return False
        if child.exit_code() is None:
            self._look_for_an_answer(child, now)
            return False
        log.error("the MPS daemon ended", exit_code=child.exit_code(), last_words=self._last_words())
        child.close()
        self._child, self.answers = None, False
        self._failures += 1
        self._not_before_s = now + min(30.0, 0.05 * 2**self._failures)
        return True

    def _look_for_an_answer(self, child: Child, now: float) -> None:
        if self.answers:
            return
        self.answers = (self._pipes / "control").exists()
        if self.answers:
            self._failures = 0
            log.info("the MPS daemon answers", pipes=str(self._pipes))
        elif now - self._started_s > START_S:
            child.terminate()  # the next round finds it ended

    def _launch(self) -> None:
        shutil.rmtree(self._pipes, ignore_errors=True)  # of a daemon that was killed
        self._pipes.mkdir()
        environment = {**self.workers, LOGS: str(self._logs)}
        self._child = Child("mps", "semipd.coordinator.mps_guard", [str(self._logs / "daemon")], environment)
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
    """Whether an MPS daemon answers in that directory. Waits for its answer."""
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


def open_mps(chosen: Chosen, device: Device, folder: Path, clock: Clock, *, obliged: bool = True) -> tuple[Mps, Chosen]:
    """MPS, started, and what was chosen in the end. Raises StartError or ConfigError where an obliged one can't be had;
    otherwise there is none then."""
    if chosen.name == "off":
        return Mps(device, folder), chosen
    mps = OwnMps(device, folder, clock) if chosen.name == "own" else AdoptedMps(device, folder, os.environ[PIPES])
    try:
        mps.start()
    except StartError as error:
        mps.close()
        if obliged:
            raise
        return Mps(device, folder), Chosen("off", str(error), less=True)
    return mps, chosen
