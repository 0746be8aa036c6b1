"""A server of this tree as a child process, and its operator's end."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, Self

import grpc

from semipd.bench.errors import RunFailed
from semipd.cli.child import DidNotStart, announced
from semipd.v1 import admin_pb2 as pb
from semipd.v1 import admin_pb2_grpc

KEPT_LOG = 100_000
"""Bytes of a log's beginning and of its end that are kept."""
KEPT_COMPLAINTS = 200
"""Lines that are kept of those in between that warn or tell of an error."""
COMPLAINT = re.compile(rb'"level": "(warning|error|critical)"')


class Served:
    """`semipd serve`, ready when entered, gone when left; its log is `log_file`."""

    def __init__(self, model: Path, options: Mapping[str, str], log_file: Path, start_s: float) -> None:
        """`options` by the names of ServerConfig's fields; the policy is the operator's, see `Admin`."""
        self._model = model
        self._options = dict(options)
        self._start_s = start_s
        self.log_file = log_file
        self.address = ""
        self.metrics_port = free_port()
        self.started_in_s = 0.0
        self._process: subprocess.Popen[bytes] | None = None
        self._log: IO[bytes] | None = None

    def __enter__(self) -> Self:
        began = time.monotonic()
        self._log = self.log_file.open("wb")
        read, write = os.pipe()
        asked = {
            "model": str(self._model),
            "load_format": "dummy",
            "port": str(free_port()),  # several gateways can't choose one by themselves
            "metrics_port": str(self.metrics_port),
            "log_format": "json",
            "announce_fd": str(write),
            **self._options,
        }
        command = [sys.executable, "-m", "semipd.cli.main", "serve"]
        for name, value in asked.items():
            command += [f"--{name.replace('_', '-')}", value]
        self._process = subprocess.Popen(
            command, pass_fds=[write], stdout=self._log, stderr=self._log, start_new_session=True
        )
        os.close(write)
        try:
            self.address = self._announced(read)
        except BaseException:
            self.__exit__()
            raise
        finally:
            os.close(read)
        self.started_in_s = time.monotonic() - began
        return self

    def _announced(self, read: int) -> str:
        assert self._process is not None
        try:
            address = announced(read, self._start_s)
        except DidNotStart as error:
            raise RunFailed(f"{error}: {self.last_words()}") from None
        if address is None:
            raise RunFailed(f"the server ended with code {self._process.wait()}: {self.last_words()}")
        return address

    def __exit__(self, *_: object) -> None:
        assert self._process is not None
        if self._process.poll() is None:
            # the first lets what runs finish, the second ends it; only then does nobody clean up (an MPS daemon, say)
            for seconds in (5, 15):
                self._process.send_signal(signal.SIGTERM)
                with suppress(subprocess.TimeoutExpired):
                    self._process.wait(seconds)
                    break
            else:
                with suppress(ProcessLookupError):
                    os.killpg(self._process.pid, signal.SIGKILL)
                self._process.wait()
        if self._log is not None:
            self._log.close()
            self._log = None
            shorten(self.log_file)

    @property
    def target(self) -> str:
        return f"grpc://{self.address}"

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def last_words(self) -> str:
        text = self.log_file.read_bytes()[-3000:].decode(errors="replace")
        return " | ".join(text.strip().splitlines()[-8:])

    def logged(self, event: str) -> list[dict[str, Any]]:
        """The log's entries of that event."""
        found = []
        for line in self.log_file.read_text(encoding="utf-8", errors="replace").splitlines():
            if event in line and line.startswith("{"):
                with suppress(ValueError):
                    entry = json.loads(line)
                    if entry.get("event") == event:
                        found.append(entry)
        return found

    def metrics(self) -> dict[str, float]:
        """The samples of its Prometheus endpoint, by name with labels."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.metrics_port}/metrics", timeout=5) as answer:
            text = answer.read().decode()
        samples = (line.rpartition(" ") for line in text.splitlines() if line and not line.startswith("#"))
        return {name: float(value) for name, _, value in samples}


class Admin:
    """The operator's questions and orders, from any thread."""

    def __init__(self, address: str) -> None:
        self._channel = grpc.insecure_channel(address)
        self._stub: Any = admin_pb2_grpc.AdminServiceStub(self._channel)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._channel.close()

    def info(self) -> Any:
        return self._stub.GetServerInfo(pb.GetServerInfoRequest(), timeout=10)

    def load(self) -> Any:
        return self._stub.GetLoad(pb.GetLoadRequest(), timeout=10).load

    def set_policy(self, name: str, options: Mapping[str, str]) -> None:
        self._stub.SetPolicy(pb.SetPolicyRequest(name=name, options=options), timeout=10)

    def set_partition(self, prefill: float, decode: float) -> tuple[float, float]:
        """(prefill, decode) as granted."""
        asked = pb.Partition(prefill=prefill, decode=decode)
        granted = self._stub.SetPartition(pb.SetPartitionRequest(partition=asked), timeout=10).granted
        return granted.prefill, granted.decode

    def workers(self) -> dict[str, tuple[int, int]]:
        """(process id, incarnation) by role; of gateways and spares, one."""
        return {p.role: (p.pid, p.incarnation) for p in self.info().processes}

    def idle(self, seconds: float) -> bool:
        """Waits for the last request to end; whether it did."""
        until = time.monotonic() + seconds
        while True:
            load = self.load()
            if load.waiting + load.prefilling + load.decoding == 0:
                return True
            if time.monotonic() > until:
                return False
            time.sleep(0.05)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def shorten(path: Path) -> None:
    """Leaves a long log its beginning, its end, and of what is between them, in order, the lines that say that
    something went wrong; of more than KEPT_COMPLAINTS of those, the first and the last."""
    text = path.read_bytes()
    if len(text) <= 2 * KEPT_LOG:
        return
    begin = text.rfind(b"\n", 0, KEPT_LOG) + 1 or KEPT_LOG
    end = text.find(b"\n", len(text) - KEPT_LOG) + 1 or len(text) - KEPT_LOG
    complaints = [line for line in text[begin:end].splitlines(keepends=True) if COMPLAINT.search(line)]
    half = KEPT_COMPLAINTS // 2
    kept = complaints if len(complaints) <= KEPT_COMPLAINTS else [*complaints[:half], *complaints[-half:]]
    left_out = (
        f"... {end - begin} bytes left out, but for {len(kept)} of {len(complaints)} warnings and errors ...\n".encode()
    )
    path.write_bytes(b"".join([text[:begin], left_out, *kept, b"... up to here ...\n", text[end:]]))


def started_at(pid: int) -> int:
    """Returns when a process began, in the kernel's ticks since boot. Together with its pid it names one process for
    good."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
