"""Several gateways on one port."""

from __future__ import annotations

import asyncio
import os
import socket
from collections import Counter
from pathlib import Path

import pytest

from semipd.bench.runs.run import run
from semipd.bench.settings import RunSettings
from semipd.bench.traces import TraceEntry, write_trace
from support.server import RunningServer

LOAD_PROCESSES = 4
"""Each has connections of its own; among so many, all at one gateway would be chance of one in ten thousands."""


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def test_both_of_two_gateways_get_streams_and_all_of_them_end_well(tmp_path: Path) -> None:
    trace = tmp_path / "small.jsonl"
    write_trace([TraceEntry(8, 12, 5.0, 1.0), TraceEntry(16, 20, 5.0, 1.0)], trace)
    with RunningServer("--gateways", "2", "--port", str(free_port()), "--no-spare-worker") as server:
        settings = RunSettings(f"grpc://{server.address}", str(trace), 40.0, 2.0, clients=LOAD_PROCESSES, drain_s=30.0)
        report = asyncio.run(run(settings))
        accepted = Counter(r["process"] for r in server.records() if r.get("event") == "accepted")
    assert report.score.done == report.score.sent > 40
    assert accepted.keys() == {"gateway.0", "gateway.1"}
    assert accepted.total() >= report.score.sent


def test_a_gateway_that_ends_before_it_listens_ends_the_server_and_is_named(tmp_path: Path) -> None:
    """A module that Python imports first ends it, before it can say why."""
    (tmp_path / "sitecustomize.py").write_text(
        "import os, sys\nif 'semipd.gateway' in sys.orig_argv:\n    os._exit(7)\n"
    )
    paths = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    server = RunningServer("--no-spare-worker", environment={"PYTHONPATH": paths})
    with pytest.raises(RuntimeError) as ended, server:
        pass
    assert "gateway.0 ended with code 7 before it listened" in str(ended.value)
    assert "Traceback" not in str(ended.value)
