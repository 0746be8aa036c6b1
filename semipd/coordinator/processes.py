"""Child processes: how they are started, what they say on standard output, and how their end is noticed."""

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
"""For every child, unless the user says otherwise: a worker's idle threads sleep instead of spinning on a CPU that
another process of the server wants."""


class Child:
    """A Python module that runs in its own process.

    It may print JSON objects, one a line, on standard output; `events` returns those that came. Standard error is the
    server's. Children die with the server (`semipd.wire.child` sees to it), so nothing is left behind by a SIGKILL.
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
        self._abandoned = False
        self.pidfd = os.pidfd_open(self._process.pid)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def out_fd(self) -> int:
        """Readable when `events` has something, or the child has ended."""
        return self._out.fileno()

    def events(self) -> list[dict[str, Any]]:
        """What it said since the last call. Lines that are not JSON objects are passed on to standard error."""
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
        """None while it lives; negative: the signal that ended it."""
        return self._process.poll()

    @property
    def killed(self) -> bool:
        """Whether it was ended from outside, and not by `abandon`."""
        return not self._abandoned and self.exit_code() in (-signal.SIGKILL, -signal.SIGTERM)

    def terminate(self) -> None:
        if self.exit_code() is None:
            self._process.terminate()

    def kill(self) -> None:
        if self.exit_code() is None:
            self._process.kill()

    def abandon(self) -> None:
        """Kills it for what it did, or for what it no longer does."""
        self._abandoned = True
        self.kill()

    def wait(self, seconds: float) -> bool:
        """Whether it has ended within so many seconds."""
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True

    def close(self) -> None:
        """Ends it if it lives, and frees what we hold of it."""
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


class Watch(Protocol):
    """The loop that wakes up when a descriptor is readable."""

    def watch(self, fd: int) -> None: ...
    def unwatch(self, fd: int) -> None: ...


class Children:
    """Starts a server's processes and buries them, watched in between."""

    def __init__(self, run_dir: Path, watch: Watch) -> None:
        self._run_dir = run_dir
        self._watch = watch

    def start(self, name: str, module: str, *arguments: str, environment: Mapping[str, str] | None = None) -> Child:
        child = Child(name, module, ["--run-dir", str(self._run_dir), *arguments], environment)
        self._watch.watch(child.pidfd)
        self._watch.watch(child.out_fd)
        return child

    def bury(self, child: Child) -> None:
        """Ends it if it lives."""
        self._watch.unwatch(child.pidfd)
        self._watch.unwatch(child.out_fd)
        child.close()
