"""Starts child processes, reads what they print on standard output, and notices when they end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from semipd.wire.process import PARENT

SETTINGS = {"OMP_WAIT_POLICY": "PASSIVE"}
"""Environment of every child, unless the user sets the same variables: a worker's idle threads sleep instead of
spinning on a CPU that another process of the server wants."""


class ChildProcess:
    """A Python module that runs in its own process.

    It may print JSON objects, one a line, on standard output; `events` returns those that came. Standard error is the
    server's. Children die with the server (`semipd.wire.child` arranges it), so a SIGKILL leaves nothing behind.
    """

    def __init__(
        self, name: str, module: str, arguments: Sequence[str], environment: Mapping[str, str] | None = None
    ) -> None:
        self.name = name
        self._process = subprocess.Popen(
            [sys.executable, "-m", "semipd.wire.child", module, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            env={**SETTINGS, **os.environ, PARENT: str(os.getpid()), **(environment or {})},
        )
        assert self._process.stdout is not None
        self._out = self._process.stdout
        os.set_blocking(self._out.fileno(), False)
        self._partial = b""
        self._faulty = False
        self.pidfd = os.pidfd_open(self._process.pid)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def out_fd(self) -> int:
        """A descriptor that is readable when `events` has something, or the child has ended."""
        return self._out.fileno()

    def events(self) -> list[dict[str, Any]]:
        """Returns the objects printed since the last call. Lines that are not JSON objects go to standard error."""
        try:
            self._partial += self._out.read() or b""
        except BlockingIOError:
            return []
        *lines, self._partial = self._partial.split(b"\n")
        found = []
        for line in lines:
            try:
                event = json.loads(line)
            except ValueError:
                event = None
            if isinstance(event, dict):
                found.append(event)
            elif line.strip():
                sys.stderr.write(f"{self.name}: {line.decode(errors='replace')}\n")
        return found

    def exit_code(self) -> int | None:
        """Returns None while it lives. A negative code is the signal that ended it."""
        return self._process.poll()

    @property
    def killed_from_outside(self) -> bool:
        """True if a signal ended it, and not a call of `kill_faulty`."""
        return not self._faulty and self.exit_code() in (-signal.SIGKILL, -signal.SIGTERM)

    def terminate(self) -> None:
        if self.exit_code() is None:
            self._process.terminate()

    def kill(self) -> None:
        if self.exit_code() is None:
            self._process.kill()

    def kill_faulty(self) -> None:
        """Kills it because of its own fault, or because it makes no progress."""
        self._faulty = True
        self.kill()

    def wait(self, seconds: float) -> bool:
        """Waits for its end, at most `seconds`. Returns whether it has ended."""
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True

    def close(self) -> None:
        """Ends it if it lives, and closes its descriptors."""
        self.kill()
        self._process.wait()
        self._out.close()
        os.close(self.pidfd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class DescriptorWatch(Protocol):
    """A loop that wakes up when a descriptor is readable."""

    def watch(self, fd: int) -> None: ...
    def unwatch(self, fd: int) -> None: ...


class ChildProcesses:
    """Starts a server's processes, has them watched, and reaps them."""

    def __init__(self, run_dir: Path, watch: DescriptorWatch) -> None:
        self.run_dir = run_dir
        self._watch = watch

    def start(
        self, name: str, module: str, *arguments: str, environment: Mapping[str, str] | None = None
    ) -> ChildProcess:
        child = ChildProcess(name, module, ["--run-dir", str(self.run_dir), *arguments], environment)
        self._watch.watch(child.pidfd)
        self._watch.watch(child.out_fd)
        return child

    def reap(self, child: ChildProcess) -> None:
        """Stops watching a child, ends it if it lives, and frees what belongs to it."""
        self._watch.unwatch(child.pidfd)
        self._watch.unwatch(child.out_fd)
        child.close()
