"""The MPS daemon's life, with a program in its place that behaves as the real one does towards its parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from semipd.coordinator.devices import Choice, ChosenDevice
from semipd.coordinator.mps import LOGS, PIPES, OwnMps, is_there, open_mps
from semipd.core.clock import SystemClock
from semipd.core.errors import ConfigError, StartError
from semipd.memory.nvml import Gpu
from support.server import until

GPU = ChosenDevice("cuda", "there is a GPU", Gpu("a GPU", 2**30, (9, 0)), (13, 0))
PROGRAM = """#!/bin/sh
cd "$CUDA_MPS_PIPE_DIRECTORY" || exit 1
if [ "$1" = -f ]; then
    if [ -n "$MPS_REFUSES" ]; then echo "there is no device"; exit 3; fi
    echo $$ > daemon.pid
    setsid sleep 1000 &
    echo $! > server.pid
    mkfifo control
    while read -r said < control; do
        if [ "$said" = quit ]; then exit 0; fi
    done
fi
if [ ! -p control ]; then echo "Cannot find MPS control daemon process"; exit 1; fi
read -r said
if [ "$said" = quit ]; then echo quit > control; fi
"""
"""It leaves its server behind, whatever ends it."""


@pytest.fixture(autouse=True)
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "bin" / "nvidia-cuda-mps-control"
    path.parent.mkdir()
    path.write_text(PROGRAM)
    path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{path.parent}:{os.environ['PATH']}")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "run"
    made.mkdir()
    return made


@pytest.fixture
def mps(folder: Path) -> Iterator[OwnMps]:
    with OwnMps(GPU, folder, SystemClock()) as made:
        made.start()
        yield made


def pids(folder: Path) -> tuple[int, int]:
    """Returns the pids of the daemon and of its server."""
    daemon, server = (int((folder / "mps" / name).read_text()) for name in ("daemon.pid", "server.pid"))
    return daemon, server


def is_gone(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def test_it_answers_in_a_private_folder_and_the_resident_does_not_find_it(mps: OwnMps, folder: Path) -> None:
    assert mps.answers
    assert mps.workers == {PIPES: str(folder / "mps")}
    assert is_there(mps.workers[PIPES])
    assert list(Path(mps.outside[PIPES]).iterdir()) == []
    assert not is_there(mps.outside[PIPES])
    daemon = psutil.Process(pids(folder)[0])
    assert daemon.environ()[LOGS] == str(folder / "mps-log")
    assert daemon.cmdline()[1:] == [str(Path(daemon.cmdline()[1])), "-f"]


def test_it_ends_with_its_server_and_nothing_is_left(mps: OwnMps, folder: Path) -> None:
    daemon, server = pids(folder)
    mps.close()
    assert is_gone(daemon)
    assert is_gone(server)
    assert not mps.answers


def test_a_daemon_that_is_killed_takes_its_server_along_and_is_started_again(mps: OwnMps, folder: Path) -> None:
    daemon, server = pids(folder)
    os.kill(daemon, signal.SIGKILL)
    assert until(mps.poll), "said once, so that its clients are replaced"
    assert not mps.answers
    assert is_gone(server)
    assert until(lambda: not mps.poll() and mps.answers)
    assert pids(folder)[0] != daemon


def test_a_daemon_that_hears_nothing_is_ended_all_the_same(mps: OwnMps, folder: Path) -> None:
    daemon, server = pids(folder)
    os.kill(daemon, signal.SIGSTOP)
    mps.close()
    assert is_gone(daemon)
    assert is_gone(server)


SERVER = """
import sys, time
from pathlib import Path
from semipd.coordinator.devices import ChosenDevice
from semipd.coordinator.mps import OwnMps
from semipd.core.clock import SystemClock
OwnMps(ChosenDevice("cuda", ""), Path(sys.argv[1]), SystemClock()).start()
print("it answers", flush=True)
time.sleep(1000)
"""


def test_a_server_that_is_killed_leaves_neither_daemon_nor_server_behind(folder: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", SERVER, str(folder)], stdout=subprocess.PIPE) as killed:
        assert killed.stdout is not None
        try:
            assert any(line == b"it answers\n" for line in killed.stdout), "its log comes before"
            found = pids(folder)
        finally:
            killed.kill()
    assert until(lambda: all(map(is_gone, found)))


def test_a_daemon_that_does_not_start_is_told_in_its_own_words(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MPS_REFUSES", "1")
    with pytest.raises(StartError, match="there is no device"):
        open_mps(Choice("own", ""), GPU, folder, SystemClock(), required=True)


def test_where_nobody_insists_there_is_none_then(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MPS_REFUSES", "1")
    mps, chosen = open_mps(Choice("own", ""), GPU, folder, SystemClock(), required=False)
    assert (mps.kind, chosen.name, chosen.degraded) == ("off", "off", True)
    assert "there is no device" in chosen.why
    assert mps.workers == mps.outside


def test_a_running_daemon_is_adopted_and_left_running(
    mps: OwnMps, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(PIPES, mps.workers[PIPES])
    adopted, _ = open_mps(Choice("adopt", ""), GPU, folder, SystemClock())
    assert adopted.workers == mps.workers
    assert adopted.outside != adopted.workers
    adopted.close()
    assert not is_gone(pids(folder)[0])


def test_a_daemon_that_does_not_answer_is_not_adopted(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PIPES, str(folder))
    with pytest.raises(ConfigError, match="--mps adopt: no MPS daemon answers in"):
        open_mps(Choice("adopt", ""), GPU, folder, SystemClock())
