"""The script that holds the simulator against measured runs, on runs that were simulated themselves."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[3]
sys.path.insert(0, str(ROOT / "benchmarks"))  # as Python does for the script itself

from figures.cases import Case, Contender  # noqa: E402
from figures.goodput import summary  # noqa: E402
from figures.run_table import Sheet  # noqa: E402
from figures.simulated_cases import SimulationSettings, run_simulated  # noqa: E402
from simulator_against_gpu import verdict_of  # noqa: E402

from semipd.core.plain import to_plain  # noqa: E402
from semipd.profiles.profile import SHIPPED, load_profile  # noqa: E402

PAGES = 80_000
FCFS = Case(Contender("fcfs"), "chat", "loose", (40.0, 120.0))
TURNS = Case(Contender("static", (("mode", "turns"),)), "long", "tight", (3.0,))


@pytest.fixture
def measured(tmp_path: Path) -> Path:
    """A sheet as the GPU would have left it, were it the simulator."""
    sheet = Sheet()
    sheet.open_session({"name": "simulated"})
    asked = SimulationSettings(load_profile(SHIPPED), tmp_path, 4.0, 5.0, PAGES)
    for case in (FCFS, TURNS):
        for rate in case.rates:
            report = run_simulated(case, rate, 3, asked)
            report = replace(report, target=replace(report.target, server={"total_pages": str(PAGES)}))
            sheet.add(case, 5.0, to_plain(summary(report)))
    sheet.save(tmp_path)
    return tmp_path


def test_what_the_simulator_itself_measured_it_finds_again(measured: Path, tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "simulator_against_gpu.py")]
    command += ["--results", str(measured), "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "simulator_against_gpu.json").read_text())
    assert len(found["runs"]) == 3
    for run in found["runs"]:
        for title in ("inside", "TTFT p50", "TPOT p90"):
            assert run[title][0] == pytest.approx(run[title][1], rel=1e-3)
    fcfs, turns = found["goodputs"]
    assert (fcfs["measured"], fcfs["ratio"], fcfs["within"]) == (fcfs["simulated"], pytest.approx(1.0), True)
    assert turns["measured"] == ">= 3"
    assert turns["ratio"] is None
    assert float(turns["simulated"]) > 3
    assert found["verdict"]["met"] is False


def test_without_measured_runs_it_says_what_it_looked_for(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "simulator_against_gpu.py"), "--results", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 1
    assert "h200_policies.json" in done.stderr


def row(policy: str, trace: str, within: bool | None, slo: str = "tight") -> dict[str, Any]:
    return {"policy": policy, "options": {}, "trace": trace, "slo": slo, "within": within}


def test_the_verdict_wants_the_same_three_policies_close_on_two_traces() -> None:
    rows = [row(policy, trace, True) for policy in ("a", "b", "c") for trace in ("chat", "long")]
    assert verdict_of(rows)["met"]
    assert verdict_of(rows)["policies"] == ["a", "b", "c"]
    elsewhere = [replaced | {"trace": "mixed"} if replaced["policy"] == "c" else replaced for replaced in rows]
    assert not verdict_of(elsewhere)["met"]
    unknown = [*rows, row("a", "chat", None, "loose")]
    assert verdict_of(unknown)["met"]
    off = [*rows, row("a", "chat", False, "loose")]
    assert not verdict_of(off)["met"]
    assert not verdict_of([])["met"]
