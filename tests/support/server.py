"""A real server in its own processes, for process tests and benchmarks."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Self, TypeVar

import psutil

from semipd.cli.child import DidNotStart, announced
from semipd_client import Client, Process
from support.signals import send_signal

START_S = 120.0
PATIENCE_S = 90.0
"""Seconds that tests wait for what another process does: longer than any of it takes on a busy machine."""

T = TypeVar("T")


class RunningServer:
    """`semipd serve` on a free port, ready when entered and gone when left. Its log is in `log()`."""

    def __init__(self, *options: str, model: Path | None = None, environment: Mapping[str, str] | None = None) -> None:
        self._environment = {**os.environ, **(environment or {})}
        self._options = list(options) + ([] if model is None else ["--model", str(model)])
        self.address = ""
        self._log: IO[bytes] | None = None
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self._log = tempfile.TemporaryFile()
        read, write = os.pipe()
        command = [sys.executable, "-m", "semipd.cli.main", "serve", "--port", "0", "--announce-fd", str(write)]
        self.process = subprocess.Popen(
            [*command, "--log-format", "json", *self._options],
            pass_fds=[write],
            stdout=self._log,
            stderr=self._log,
            start_new_session=True,
            env=self._environment,
        )
        os.close(write)
        try:
            self.address = self._announced(read)
        except BaseException:
            self.__exit__()
            raise
        finally:
            os.close(read)
        return self

    def _announced(self, read: int) -> str:
        assert self.process is not None
        try:
            address = announced(read, START_S)
        except DidNotStart as error:
            raise TimeoutError(f"{error}:\n{self.log()}") from None
        if address is None:
            raise RuntimeError(f"the server ended with code {self.process.wait()}:\n{self.log()}")
        return address

    def __exit__(self, *_: object) -> None:
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        if self._log is not None:
            self._log.close()
            self._log = None

    def client(self) -> Client:
        return Client(self.address)

    def log(self) -> str:
        assert self._log is not None
        return os.pread(self._log.fileno(), 50_000_000, 0).decode(errors="replace")

    def records(self) -> list[dict[str, object]]:
        """The log's JSON lines."""
        return [json.loads(line) for line in self.log().splitlines() if line.startswith("{")]

    def pid(self, role: str) -> int:
        """Waits until a process has the role, and returns its pid."""
        with self.client() as client:
            return until(lambda: _pid_of(client, role))

    def kill(self, role: str, number: signal.Signals = signal.SIGKILL) -> int:
        """Sends the signal to the process that has the role at this moment, and returns its pid."""
        with self.client() as client:

            def hit() -> int | None:
                pid = _pid_of(client, role)
                if pid is None or not send_signal(pid, number, lambda: _pid_of(client, role) == pid):
                    return None
                return pid

            return until(hit)

    def family(self) -> list[psutil.Process]:
        """The server's process and all its children."""
        assert self.process is not None
        top = psutil.Process(self.process.pid)
        return [top, *top.children(recursive=True)]

    def processes(self) -> tuple[Process, ...]:
        with self.client() as client:
            return client.server_info().processes

    def free_pages_are_back(self) -> bool:
        with self.client() as client:
            return until(lambda: (load := client.load()).free_pages == load.total_pages)


def _pid_of(client: Client, role: str) -> int | None:
    pids = [p.pid for p in client.server_info().processes if p.role == role]
    return pids[0] if pids else None


def until(look: Callable[[], T | None], seconds: float = PATIENCE_S) -> T:
    """Returns the first true answer: a test waits so for what another process does, without a guess at how long."""
    end = time.monotonic() + seconds
    while True:
        found = look()
        if found:
            return found
        if time.monotonic() > end:
            raise TimeoutError(f"not within {seconds} s")
        time.sleep(0.01)
