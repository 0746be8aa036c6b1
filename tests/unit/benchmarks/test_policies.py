"""The script that compares policies on a GPU, on a CPU: cases, results that survive, goodput out of few rates."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[3]
sys.path.insert(0, str(ROOT / "benchmarks"))  # as Python does for the script itself

from figures.aims import AIMS  # noqa: E402
from figures.cases import RATES, Contender, cases, trace_for  # noqa: E402
from figures.goodput_estimate import crossing, pooled  # noqa: E402
from figures.run_table import NAME, Sheet, attained, goodput_of  # noqa: E402

from semipd.bench.traces import LOOSE, load_trace  # noqa: E402

TURNS = Contender("static", (("mode", "turns"), ("chunk", "64")))


def script(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "benchmarks" / "policies.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)


def test_policies_are_swapped_in_one_server_a_failed_case_is_reported_and_the_same_command_goes_on(
    tmp_path: Path,
) -> None:
    cases = ("none-such:chat:tight", "static,mode=turns,chunk=64:chat:tight,loose", "chunked:long:tight")
    asked = ["--tiny", "--out", str(tmp_path), *(word for case in cases for word in ("--case", case))]
    done = script(*asked)
    assert done.returncode == 1, done.stdout + done.stderr
    assert len(list(tmp_path.glob("server_*.log"))) == 1
    result = json.loads((tmp_path / NAME).read_text())["result"]
    assert [(run["policy"], run["trace"], run["slo"]) for run in result["runs"]] == [
        ("static", "chat", "tight"),
        ("static", "chat", "loose"),
        ("chunked", "long", "tight"),
    ]
    assert all(run["score"]["done"] == run["score"]["sent"] > 0 for run in result["runs"])
    assert not any("records" in run for run in result["runs"])
    (failure,) = result["failures"]
    assert failure["policy"] == "none-such"
    assert "no policy is named" in failure["error"]

    again = script(*asked)
    valid = sum(run["valid"] for run in result["runs"])  # on a busy machine the client may fall behind
    assert again.stdout.count("there already") == valid

    table = script("--table", str(tmp_path))
    assert table.returncode == 0
    assert "attainment at requests/s" in table.stdout


def test_what_a_case_leaves_out_is_every_trace_and_slo_at_the_usual_rates() -> None:
    found = cases("static,mode=turns,chunk=64", RATES)
    assert {(case.trace, case.slo): case.rates for case in found} == RATES
    assert {case.contender for case in found} == {TURNS}
    (one,) = cases("fcfs:long:loose:9.5,8", RATES)
    assert (one.trace, one.slo, one.rates) == ("long", "loose", (8.0, 9.5))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("fcfs:poems", "no trace is named 'poems'; there are chat, mixed, long"),
        ("fcfs:chat:odd", "no SLO is named 'odd'"),
        ("fcfs:chat:tight:fast", "'fast' is not a number above 0"),
        ("static,turns:chat", "'turns' is not OPTION=VALUE"),
        ("mode=turns:chat", "does not begin with the name of a policy"),
        ("fcfs:chat:tight:56:3", "is not POLICY:TRACE:SLO:RATES"),
    ],
)
def test_a_case_that_cannot_be_read_is_told_by_what_is_wrong(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        cases(text, RATES)


def test_requests_carry_the_slo_that_they_are_held_to(tmp_path: Path) -> None:
    assert trace_for("chat", "tight", tmp_path) == "chat"
    tight, loose = load_trace("chat"), load_trace(trace_for("chat", "loose", tmp_path))
    assert [entry.prompt_len for entry in loose] == [entry.prompt_len for entry in tight]
    assert loose[0].tpot_slo_s == pytest.approx(tight[0].tpot_slo_s * LOOSE)
    assert loose[0].ttft_slo_s == pytest.approx(tight[0].ttft_slo_s * LOOSE)


@pytest.mark.parametrize(
    ("attainment", "value", "said"),
    [
        ({56.0: 0.98, 64.0: 0.94, 72.0: 0.84}, 67.2, "67.2"),
        ({56.0: 0.98, 64.0: 0.90, 72.0: 0.5}, 64.0, "64"),
        ({56.0: 0.89, 60.0: 0.95, 64.0: 0.85}, 62.0, "62"),
        ({56.0: 0.98, 64.0: 0.95}, None, ">= 64"),
        ({56.0: 0.7, 64.0: 0.3}, None, "< 56"),
        ({}, None, "-"),
    ],
)
def test_goodput_is_interpolated_only_between_a_rate_that_passed_and_the_next_that_failed(
    attainment: dict[float, float], value: float | None, said: str
) -> None:
    found = crossing(attainment)
    assert found.value == (None if value is None else pytest.approx(value))
    assert found.said() == said


def test_runs_of_one_rate_are_pooled_by_requests() -> None:
    assert pooled([(64.0, 300, 0.9), (56.0, 10, 1.0), (64.0, 100, 0.5)]) == {56.0: 1.0, 64.0: pytest.approx(0.8)}


def run_of(attainment: float, *, rate: float = 56.0, seed: int = 0, valid: bool = True) -> dict[str, Any]:
    score = {"sent": 100, "attainment": attainment}
    return {"rate": rate, "seconds": 12.0, "seed": seed, "valid": valid, "score": score}


def test_files_of_several_sessions_merge_the_later_run_counts_and_an_invalid_one_does_not(tmp_path: Path) -> None:
    case, other = cases("fcfs:chat:tight", RATES) + cases("adaptive:chat:tight", RATES)
    first, second = Sheet(), Sheet()
    first.open_session({"name": "first"})
    first.add(case, 20.0, run_of(0.5))
    first.add(case, 20.0, run_of(0.2, rate=64.0, valid=False))
    first.fail(other, 56.0, "lost")
    second.open_session({"name": "second"})
    second.add(case, 20.0, run_of(0.95))
    second.add(other, 20.0, run_of(0.99))
    merged = Sheet.read([first.save(tmp_path / "1"), second.save(tmp_path / "2")])
    assert merged.failures == []
    ends = {key[0].policy: runs for key, runs in merged.by_key().items()}
    assert [run["score"]["attainment"] for run in ends["fcfs"]] == [0.95]
    assert merged.sessions[ends["fcfs"][0]["session"]]["settings"]["name"] == "second"
    assert merged.done(case, 56.0, 12.0, 0) is not None
    assert merged.done(case, 64.0, 12.0, 0) is None


def test_of_runs_of_one_rate_all_are_kept_and_the_longest_counts(tmp_path: Path) -> None:
    (case,) = cases("fcfs:chat:tight", RATES)
    short, long = Sheet(), Sheet()
    short.open_session({"name": "short"})
    short.add(case, 20.0, run_of(0.95, rate=64.0))
    short.add(case, 20.0, run_of(0.99))
    long.open_session({"name": "long"})
    long.add(case, 20.0, run_of(0.8, rate=64.0) | {"seconds": 20.0})
    merged = Sheet.read([long.save(tmp_path / "1"), short.save(tmp_path / "2")])
    (runs,) = merged.by_key().values()
    told = {(run["rate"], run["seconds"]): merged.sessions[run["session"]]["settings"]["name"] for run in runs}
    assert told == {(56.0, 12.0): "short", (64.0, 12.0): "short", (64.0, 20.0): "long"}
    assert attained(runs) == {56.0: 0.99, 64.0: 0.8}
    assert goodput_of(runs).value == pytest.approx(56 + 8 * 0.09 / 0.19)


def test_the_table_of_figures_has_the_highest_rate_that_any_policy_passed_under_the_tight_slo(tmp_path: Path) -> None:
    sheet = Sheet()
    sheet.open_session({"name": "made up"})
    for text, rate, share in (("fcfs:chat:tight", 56.0, 0.95), ("adaptive:chat:tight", 66.0, 0.91)):
        (case,) = cases(text, RATES)
        sheet.add(case, 20.0, run_of(share, rate=rate))
        sheet.add(case, 20.0, run_of(0.5, rate=rate + 8))
    for text in ("fcfs:chat:loose", "fcfs:mixed:loose"):
        (case,) = cases(text, RATES)
        sheet.add(case, 20.0, run_of(0.99, rate=80.0))
    (case,) = cases("fcfs:long:tight", RATES)
    sheet.add(case, 20.0, run_of(0.7, rate=9.5))
    assert json.loads(sheet.save(tmp_path).read_text())["figures"] == {"goodput_chat": 66.0}
    command = [sys.executable, str(ROOT / "benchmarks" / "h200.py"), "--table", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr
    (line,) = (line for line in done.stdout.splitlines() if AIMS["goodput_chat"].name in line)
    assert "66 req/s" in line
