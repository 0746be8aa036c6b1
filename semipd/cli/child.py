"""A server as a child process: ready when entered, gone when left."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Self

STOP_S = 15.0
"""Seconds between SIGTERM and SIGKILL; the child's own children end with it."""


class DidNotStart(Exception):
    """Its message says how it ended, or that it took too long."""


def announced(read: int, seconds: float) -> str | None:
    """HOST:PORT, as a server writes it to the other end of `read` (--announce-fd); None: it has closed it unwritten.

    Raises DidNotStart where neither comes within so many seconds.
    """
    said = b""
    until = time.monotonic() + seconds
    while not said.endswith(b"\n"):
        readable, _, _ = select.select([read], [], [], max(0.0, until - time.monotonic()))
        if not readable:
            raise DidNotStart(f"the server was not ready within {seconds:g} s")
        piece = os.read(read, 4096)
        if not piece:
            return None
        said += piece
    return str(json.loads(said)["address"])


class ChildServer:
    """`semipd serve` on a free port. What it says goes to our standard error. Raises DidNotStart on entry."""

    def __init__(self, options: Sequence[str], start_s: float) -> None:
        self._command = [sys.executable, "-m", "semipd.cli.main", "serve", "--port", "0", "--log-level", "warning"]
        self._command += options
        self._start_s = start_s
        self._process: subprocess.Popen[bytes] | None = None
        self.address = ""
        self.exit_code: int | None = None

    def __enter__(self) -> Self:
        read, write = os.pipe()
        try:
            try:
                self._process = subprocess.Popen(
                    [*self._command, "--announce-fd", str(write)],
                    pass_fds=[write],
                    stdin=subprocess.DEVNULL,
                    # A Ctrl-C is ours to handle: it must not reach the server beside our own SIGTERM.
                    start_new_session=True,
                )
            finally:
                os.close(write)
            self.address = self._announced(read)
        except BaseException:
            self._stop()
            raise
        finally:
            os.close(read)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def _announced(self, read: int) -> str:
        address = announced(read, self._start_s)
        if address is None:
            code = self._process.wait() if self._process is not None else None
            raise DidNotStart(f"the server ended before it was ready, with exit code {code}")
        return address

    def _stop(self) -> None:
        process = self._process
        if process is None:
            return
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(STOP_S)
            except BaseException:  # too slow, or another Ctrl-C: whatever it is, nothing may be left running
                process.kill()
                process.wait()
                self.exit_code = process.returncode
                raise
        self.exit_code = process.returncode
