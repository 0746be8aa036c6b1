"""The gateway as a process: what it says, how it ends, and what it never imports."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import zmq

from semipd.core.config import ServerConfig
from semipd.internal.v1 import gateway_pb2 as gw
from semipd.wire.sockets import RunDir, bind_router

PATIENCE_S = 90.0
PATIENCE_MS = 90_000


@contextmanager
def gateway_process(run_dir: RunDir, config: ServerConfig) -> Iterator[subprocess.Popen[bytes]]:
    run_dir.config.write_text(config.to_json())
    command = [
        sys.executable,
        "-m",
        "semipd.wire.child",
        "semipd.gateway",
        "--run-dir",
        str(run_dir.path),
        "--name",
        "gateway.0",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        try:
            yield process
        finally:
            process.kill()


def first_line(process: subprocess.Popen[bytes]) -> Any:
    """Reads the next line that the process prints: JSON."""
    assert process.stdout is not None
    return json.loads(process.stdout.readline())


def test_it_says_where_it_listens_to_both_sides_and_ends_on_sigterm(checkpoint: Path, tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path)
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    try:
        router = bind_router(context, run_dir.gateway_endpoint)
        with gateway_process(run_dir, ServerConfig(model=str(checkpoint), port=0)) as process:
            said = first_line(process)
            assert said["event"] == "listening"
            assert router.poll(PATIENCE_MS)
            identity, frame = router.recv_multipart()
            assert identity == b"gateway.0"
            assert gw.FromGateway.FromString(frame).hello == gw.GatewayHello(pid=process.pid, port=said["port"])
            process.send_signal(signal.SIGINT)  # a terminal sends it to all; the parent decides
            process.terminate()
            assert process.wait(PATIENCE_S) == 0
    finally:
        context.destroy(linger=0)


def test_what_can_t_start_says_why(tmp_path: Path) -> None:
    with gateway_process(RunDir(tmp_path), ServerConfig(model=str(tmp_path / "nowhere"))) as process:
        said = first_line(process)
        assert said["event"] == "failed"
        assert "nowhere" in said["error"]
        assert process.wait(PATIENCE_S) == 1


def test_it_does_not_outlive_its_parent(checkpoint: Path, tmp_path: Path) -> None:
    RunDir(tmp_path).config.write_text(ServerConfig(model=str(checkpoint), port=0).to_json())
    command = [
        sys.executable,
        "-m",
        "semipd.wire.child",
        "semipd.gateway",
        "--run-dir",
        str(tmp_path),
        "--name",
        "gateway.0",
    ]
    parent = (
        "import os, subprocess, sys\n"
        f"child = subprocess.Popen({command!r}, stdout=subprocess.PIPE)\n"
        "child.stdout.readline()\n"
        "print(child.pid, flush=True)\n"
        "sys.stdin.read()\n"
    )
    with subprocess.Popen([sys.executable, "-c", parent], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        fd = os.pidfd_open(first_line(process))
        try:
            process.kill()
            poller = zmq.Poller()
            poller.register(fd, zmq.POLLIN)
            assert poller.poll(PATIENCE_MS), "the gateway is still there"
        finally:
            os.close(fd)


def test_it_never_imports_torch_or_transformers() -> None:
    code = (
        "import sys, semipd.gateway.__main__, semipd.gateway.renderer\n"
        "print(sorted({m.partition('.')[0] for m in sys.modules} & {'torch', 'transformers', 'numpy'}))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
