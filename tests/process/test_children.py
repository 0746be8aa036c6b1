"""A child of a server ends with it from its first moment on."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psutil

from support.server import until

PARENT = """
from semipd.coordinator.processes import ChildProcess
with ChildProcess("slow", "slow", []) as child:
    while not child.events():
        pass
    print(child.pid, flush=True)
    input()
"""


def has_ended(pid: int) -> bool:
    """A zombie has: in a container, whoever adopted it may never ask."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_a_child_that_is_still_importing_ends_with_its_parent(tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text("import signal\nprint('{}', flush=True)\nsignal.pause()\n")
    command = [sys.executable, "-c", PARENT]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        parent.kill()
        assert until(lambda: has_ended(pid))


def test_a_child_whose_parent_is_gone_already_does_not_begin(tmp_path: Path) -> None:
    (tmp_path / "late.py").write_text("print('began')\n")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "SEMIPD_PARENT": "1"}
    command = [sys.executable, "-m", "semipd.wire.child", "late"]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60)
    assert (ran.returncode, ran.stdout) == (1, "")
