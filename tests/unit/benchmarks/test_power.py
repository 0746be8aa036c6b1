"""The power that a GPU draws during a run is read, here from a stand-in for nvidia-smi."""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path

import pytest

from support.server import until

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT / "benchmarks"))

from figures.power import Look, PowerWatch, look, told  # noqa: E402

STAND_IN = """#!/bin/sh
echo "1455, 693.08, 0x0000000000000004"
echo "1980, 560.10, 0x0000000000000000"
echo "[N/A], [N/A], 0x0"
echo "$@" > "$0.asked"
exec sleep 60
"""


def test_it_asks_of_the_device_that_is_used_until_it_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text(STAND_IN)
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    with PowerWatch() as watch:
        until(lambda: len(watch.looks) >= 2 and (tmp_path / "nvidia-smi.asked").exists())
    assert [(one.sm_mhz, one.watts, one.limited) for one in watch.looks] == [(1455, 693.08, True), (1980, 560.1, False)]
    assert "-i 1" in (tmp_path / "nvidia-smi.asked").read_text()


def test_without_the_program_nothing_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with PowerWatch() as watch:
        pass
    assert watch.looks == []
    assert told(watch.looks, 0.0, 10.0) is None


def test_a_line_that_says_nothing_is_no_look() -> None:
    assert look(1.0, "1455, 693.08, 0x4") == Look(1.0, 1455, 693.08, True)
    assert look(1.0, "Unable to determine the device handle") is None


def test_means_are_of_the_looks_in_that_time() -> None:
    looks = [
        Look(0.5, 400, 100, False),
        Look(1.0, 1500, 700, True),
        Look(2.0, 1900, 600, False),
        Look(3.0, 1, 1, False),
    ]
    assert told(looks, 1.0, 3.0) == {
        "looks": 2,
        "watts_mean": 650.0,
        "sm_mhz_mean": 1700.0,
        "sm_mhz_median": 1700.0,
        "power_limited": 0.5,
    }
