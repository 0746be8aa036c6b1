"""`semipd demo`, as `make demo` calls it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import uuid
from pathlib import Path

import psutil
import pytest

from semipd.cli.child import ChildServer, DidNotStart

DEMO = [sys.executable, "-m", "semipd.cli.main", "demo"]


def test_the_demo_answers_over_grpc_and_leaves_nothing_running() -> None:
    mark = {"SEMIPD_TEST": uuid.uuid4().hex}
    done = subprocess.run(DEMO, capture_output=True, text=True, timeout=280, check=False, env=os.environ | mark)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    assert "TTFT" in done.stderr
    assert "TPOT" in done.stderr
    assert [p for p in psutil.process_iter(["environ"]) if mark.items() <= (p.info["environ"] or {}).items()] == []


def test_ctrl_c_while_the_server_starts_leaves_nothing_running() -> None:
    with subprocess.Popen(DEMO, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as demo:
        assert demo.stderr is not None
        for line in demo.stderr:
            if b"loading weights" in line:
                break
        family = psutil.Process(demo.pid).children(recursive=True)
        assert family
        demo.send_signal(signal.SIGINT)
        demo.stderr.read()
        assert demo.wait(30) == 130
    _, alive = psutil.wait_procs(family, timeout=60)
    assert alive == []


def test_a_server_that_cannot_start_is_told_by_its_exit_code(tmp_path: Path) -> None:
    with pytest.raises(DidNotStart, match="exit code"), ChildServer(["--model", str(tmp_path)], start_s=60):
        pass


def test_a_server_that_takes_too_long_is_stopped() -> None:
    with pytest.raises(DidNotStart, match="not ready"), ChildServer([], start_s=0.05):
        pass
