"""The page that compares policies: its figures are those of the results, and the committed page is up to date."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[3]
sys.path.insert(0, str(ROOT / "benchmarks"))  # as Python does for the script itself

from figures.cases import BUILT_IN, Case, Contender  # noqa: E402
from figures.changing_load import BIN_S, LOOK_S, Phase, follow, shifting  # noqa: E402
from figures.policy_comparison import NAME, Plan, PolicyComparison, searched  # noqa: E402
from figures.policy_plots import draw_goodputs, draw_shift  # noqa: E402
from figures.policy_text import page  # noqa: E402
from figures.run_table import NAME as MEASURED  # noqa: E402
from figures.run_table import Sheet  # noqa: E402
from policies_compared import PAGE, TEMPLATE, rendered  # noqa: E402
from provenance import RESULTS  # noqa: E402

from semipd.profiles.profile import SHIPPED, load_profile  # noqa: E402

PHASES = (Phase("chat", 20.0, 5.0), Phase("long", 3.0, 5.0))
FCFS, ADAPTIVE = Contender("fcfs"), Contender("adaptive")


@pytest.fixture(scope="module")
def simulated() -> dict[str, Any]:
    """Two policies on chat, with goodputs that are made up; the shifting load is simulated."""
    seen = {"modes": {"split": 0.25, "turns": 0.75, "mixed": 0.0}, "prefill_share": 64.0, "decode_share": 36.0}
    searches = [
        {"policy": who.policy, "options": {}, "trace": "chat", "slo": "tight", "likely": None, "rates": []}
        | {"goodput": {"passed": value - 1, "failed": value + 1, "value": value}, "at_goodput": seen}
        for who, value in ((FCFS, 41.5), (ADAPTIVE, 83.0))
    ]
    searches.append({"policy": "semi-pd", "options": {}, "trace": "chat", "slo": "tight", "error": "it was replaced"})
    phases = [{"trace": phase.trace, "rate": phase.rate, "seconds": phase.seconds} for phase in PHASES]
    shift = {
        "phases": phases,
        "bin_s": BIN_S,
        "look_s": LOOK_S,
        "policies": [follow(ADAPTIVE, load_profile(SHIPPED), PHASES)],
    }
    head = {"profile": SHIPPED, "recorded": False, "gpu": "H200", "model": "Llama", "seconds": 60.0, "seeds": 2}
    return head | {"tolerance": 0.03, "searches": searches, "shift": shift}


def measured(rates: dict[str, dict[float, float]]) -> Sheet:
    """Attainment by rate, by policy; on chat, under the tight SLO."""
    sheet = Sheet()
    sheet.open_session({"name": "made up"})
    for policy, shares in rates.items():
        for rate, share in shares.items():
            run = {"rate": rate, "seconds": 12.0, "seed": 0, "valid": True, "score": {"sent": 100, "attainment": share}}
            sheet.add(Case(Contender(policy), "chat", "tight"), 20.0, run)
    return sheet


def test_the_page_says_who_wins_who_loses_and_what_was_not_measured(simulated: dict[str, Any]) -> None:
    text = page(TEMPLATE.read_text(), PolicyComparison(simulated, Sheet()), None)
    assert "{{" not in text
    assert "* **chat, tight**: `adaptive` with 83 requests/s; last is `fcfs` with 41.5, 50 % of it." in text
    assert "| `fcfs` | 41.5 | – |" in text
    assert "| `adaptive` | **83** | – |" in text
    assert "Measured**: nothing yet" in text
    assert "simulated ranks are unconfirmed" in text
    assert "`semi-pd` on chat, tight, simulated: it was replaced" in text
    assert "83 `adaptive`: reaches the aim" in text
    assert "no mixed batches" in text


def test_measured_figures_stand_beside_the_simulated_and_a_contradiction_is_told(simulated: dict[str, Any]) -> None:
    sheet = measured({"fcfs": {56.0: 0.95, 64.0: 0.85}, "adaptive": {56.0: 0.7}, "mine": {56.0: 0.2}})
    against = {
        "goodputs": [
            {"policy": "fcfs", "options": {}, "trace": "chat", "slo": "tight"}
            | {"measured": "60", "simulated": "41.5", "ratio": 0.69, "within": False}
        ]
    }
    text = page(TEMPLATE.read_text(), PolicyComparison(simulated, sheet), against)
    assert "| `fcfs` | 41.5 | **60** |" in text
    assert "| `adaptive` | **83** | < 56 |" in text
    assert "| `mine` | – | < 56 |" in text
    assert "of the 2 that were measured `fcfs` leads, another as simulated (`adaptive`)" in text
    assert "0 of 1 goodputs are within 10 %" in text
    assert "60 `fcfs`: short of the aim" in text
    assert "may be ahead" not in text


def test_who_was_only_measured_at_higher_rates_is_not_said_to_be_behind(simulated: dict[str, Any]) -> None:
    sheet = measured({"fcfs": {56.0: 0.95, 64.0: 0.85}, "adaptive": {66.0: 0.8}})
    text = page(TEMPLATE.read_text(), PolicyComparison(simulated, sheet), None)
    assert "`adaptive` may be ahead of that: no rate as low was measured." in text


def test_the_pictures_are_drawn(simulated: dict[str, Any], tmp_path: Path) -> None:
    compared = PolicyComparison(simulated, measured({"fcfs": {56.0: 0.95, 64.0: 0.85}, "adaptive": {56.0: 0.95}}))
    draw_goodputs(tmp_path / "goodput.png", compared)
    draw_shift(tmp_path / "shift.png", compared)
    for name in ("goodput.png", "shift.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


def test_the_phases_of_a_shifting_load_follow_each_other() -> None:
    due = shifting(PHASES, seed=0)
    assert [arrival.index for arrival in due] == list(range(len(due)))
    assert [arrival.at_s for arrival in due] == sorted(arrival.at_s for arrival in due)
    early = [arrival.entry.prompt_len for arrival in due if arrival.at_s < 5.0]
    late = [arrival.entry.prompt_len for arrival in due if arrival.at_s >= 5.0]
    assert sum(late) / len(late) > 5 * sum(early) / len(early)


def test_what_a_policy_did_is_seen_while_both_phases_work() -> None:
    turns = follow(Contender("static", (("mode", "turns"),)), load_profile(SHIPPED), PHASES)
    assert len(turns["looks"]) == 10 / LOOK_S
    assert all(look["modes"]["turns"] == 1.0 and look["prefill_share"] is None for look in turns["looks"])
    split = follow(Contender("static", (("prefill", "64"), ("decode", "36"))), load_profile(SHIPPED), PHASES)
    assert all(look["modes"]["split"] == 1.0 for look in split["looks"])
    assert {(look["prefill_share"], look["decode_share"]) for look in split["looks"]} == {(64.0, 36.0)}
    overload = follow(FCFS, load_profile(SHIPPED), (Phase("chat", 20.0, 5.0), Phase("long", 40.0, 5.0)))
    assert [phase["both"] > 0.5 for phase in overload["phases"]] == [True, False]


def test_a_goodput_is_searched_for_and_a_case_that_fails_says_why(tmp_path: Path) -> None:
    plan = Plan(SHIPPED, 5.0, tolerance=0.5, repeats=1)
    found = searched(Case(BUILT_IN[2], "chat", "loose"), plan, tmp_path)
    assert found["goodput"]["passed"] <= found["goodput"]["value"] <= found["goodput"]["failed"]
    assert found["at_goodput"]["modes"]["turns"] == 1.0
    failed = searched(Case(Contender("none-such"), "chat", "tight"), plan, tmp_path)
    assert "none-such" in failed["error"]


def test_the_committed_page_is_made_of_the_committed_results(tmp_path: Path) -> None:
    for name in (f"{NAME}.json", MEASURED, "simulator_against_gpu.json"):
        if (RESULTS / name).exists():
            shutil.copy(RESULTS / name, tmp_path)
    assert json.loads((tmp_path / f"{NAME}.json").read_text())["searches"]
    assert rendered(tmp_path)[1] == PAGE.read_text(), "run python benchmarks/policies_compared.py --page"
