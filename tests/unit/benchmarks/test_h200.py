"""The script that makes the GPU's figures, on a CPU: its quick sections run, and what it computes of runs is right."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
sys.path.insert(0, str(ROOT / "benchmarks"))  # as Python does for the script itself

from figures.aims import AIMS  # noqa: E402
from figures.bench import Wanted  # noqa: E402
from figures.goodput import misses  # noqa: E402
from figures.load import pause  # noqa: E402
from figures.section_results import histogram  # noqa: E402
from figures.split import around, delays  # noqa: E402

from semipd.bench.scoring.records import Outcome, RequestRecord  # noqa: E402

STEP = 0.010


def record(gaps: list[float], first_s: float = 1.0) -> RequestRecord:
    last = first_s + sum(gaps)
    return RequestRecord(
        index=0,
        prompt_len=8,
        output_len=len(gaps) + 1,
        ttft_slo_s=0.5,
        tpot_slo_s=0.05,
        scheduled_s=0.9,
        sent_s=0.9,
        outcome=Outcome.DONE,
        reason="",
        tokens=len(gaps) + 1,
        first_s=first_s,
        last_s=last,
        done_s=last,
        queue_s=None,
        largest_gap_s=max(gaps),
        gaps_s=tuple(gaps),
        counts=(),
    )


def script(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "benchmarks" / "h200.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)


def test_the_quick_sections_run_on_a_cpu_and_leave_their_results(tmp_path: Path) -> None:
    done = script("--tiny", "--only", "engine,alone,chat", "--rates", "chat=4", "--out", str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    pages = {name: json.loads((tmp_path / f"h200_{name}.json").read_text()) for name in ("engine", "alone", "chat")}
    assert pages["engine"]["error"] == "needs a GPU"
    assert pages["alone"]["figures"].keys() == {"alone_ttft_ms", "alone_tpot_ms"}
    assert pages["alone"]["provenance"]["python"]
    (run,) = pages["chat"]["result"]["runs"]
    assert run["score"]["done"] == run["score"]["sent"] > 0
    assert sum(run["misses"].values()) == round((1 - run["score"]["attainment"]) * run["score"]["sent"])
    assert (tmp_path / "h200_chat.png").read_bytes().startswith(b"\x89PNG")
    assert AIMS["goodput_chat"].name in done.stdout

    again = script("--table", str(tmp_path))
    assert again.returncode == 0
    assert f"{pages['alone']['figures']['alone_tpot_ms']:.4g} ms" in again.stdout


@pytest.mark.thorough
def test_a_section_that_fails_is_reported_and_the_others_go_on(tmp_path: Path) -> None:
    done = script(
        *("--tiny", "--only", "alone,mixed", "--out", str(tmp_path)),
        *("--serve", "alone:policy=none-such", "--rates", "mixed=4"),
    )
    assert done.returncode == 1
    assert "none-such" in json.loads((tmp_path / "h200_alone.json").read_text())["error"]
    assert len(json.loads((tmp_path / "h200_mixed.json").read_text())["result"]["runs"]) == 1


def test_options_go_to_the_server_or_to_the_policy() -> None:
    base = Wanted({"gateways": "4"})
    wanted = base.over("kv_memory_gb=80,policy=static,prefill=52,decode=48")
    assert wanted == Wanted({"gateways": "4", "kv_memory_gb": "80"}, "static", {"prefill": "52", "decode": "48"})
    assert wanted.over("policy=fcfs") == Wanted({"gateways": "4", "kv_memory_gb": "80"}, "fcfs", {})
    assert wanted.over("prefill=60").policy_options == {"prefill": "60", "decode": "48"}
    with pytest.raises(ValueError, match="NAME=VALUE"):
        base.over("static")


def test_what_a_change_adds_is_seen_in_the_step_in_which_it_falls_and_in_the_next() -> None:
    gaps = [STEP + 0.001 * (i % 2) for i in range(100)]
    gaps[50] += 0.0002
    gaps[51] += 0.0001
    moment = 1.0 + sum(gaps[:50]) + STEP / 2
    found = around([record(gaps)], [moment], 0.0, 100.0)
    assert found["added_us"] == pytest.approx(300, rel=0.05)


def test_delays_are_those_between_two_looks_at_the_servers_histogram() -> None:
    name = "semipd:split_delay_seconds"
    before = {f'{name}_bucket{{le="0.01"}}': 5.0, f'{name}_bucket{{le="+Inf"}}': 5.0}
    before |= {f"{name}_count": 5.0, f"{name}_sum": 0.02}
    after = {f'{name}_bucket{{le="0.01"}}': 104.0, f'{name}_bucket{{le="+Inf"}}': 105.0}
    after |= {f"{name}_count": 105.0, f"{name}_sum": 0.52}
    found = delays(before, after)
    assert found["count"] == 100
    assert found["mean_s"] == pytest.approx(0.005)
    assert found["p99_at_most_s"] == 0.01
    assert delays(after, after)["count"] == 0


def test_a_pause_is_the_longest_silence_that_overlaps_the_fault() -> None:
    stream = record([STEP] * 10 + [0.8] + [STEP] * 10 + [2.0] + [STEP])
    assert pause(stream, 1.15, 1.5) == pytest.approx(0.8)
    broken = replace(record([STEP] * 10), outcome=Outcome.FAILED, done_s=9.0)
    assert pause(broken, 5.0, 6.0) == pytest.approx(9.0 - 1.1)


def test_misses_are_told_apart() -> None:
    fine = record([STEP] * 4)
    late, slow = replace(fine, sent_s=0.1), record([0.1] * 4)
    refused = replace(fine, outcome=Outcome.REFUSED)
    found = misses([fine, late, slow, replace(slow, sent_s=0.1), refused])
    assert found == {"ttft": 1, "tpot": 1, "both": 1, "refused": 1, "failed": 0}


def test_verdicts_know_which_way_is_better() -> None:
    goodput, step = AIMS["goodput_chat"], AIMS["decode_64x1024_ms"]
    assert [goodput.verdict(v) for v in (None, 50, 56, 73)] == ["not measured", "SHORT", "enough", "aim met"]
    assert [step.verdict(v) for v in (8.0, 7.4, 6.3)] == ["SHORT", "enough", "aim met"]


def test_a_histogram_has_ten_bins_a_decade_and_no_empty_ones() -> None:
    assert histogram([0.001, 0.001, 0.0099, 0.01, 1.0]) == [(1.0, 2), (10.0, 2), (1000.0, 1)]
