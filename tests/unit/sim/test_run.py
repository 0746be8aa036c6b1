from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner
from unit.sim.small import small_profile

from semipd.bench.runs.goodput import read_goodput
from semipd.bench.scoring.report import read_report
from semipd.bench.settings import RunSettings
from semipd.cli.main import app
from semipd.core.errors import InputError
from semipd.profiles.profile import SHIPPED
from semipd.sim.run import SimConfig, simulate

PROFILE = small_profile()
ASKED = RunSettings("", "chat", 20.0, 10.0, 0)


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["simulate", *arguments])
    return result.exit_code, result.output


def test_the_report_is_the_same_each_time_and_another_for_another_seed() -> None:
    config = SimConfig("static", {"mode": "turns"}, PROFILE)
    one, two = (simulate(config, ASKED) for _ in range(2))
    assert one.records == two.records
    assert one.score == two.score
    assert one.timeline == two.timeline
    assert simulate(config, replace(ASKED, seed=1)).records != one.records


def test_a_run_counts_as_a_real_one_does() -> None:
    report = simulate(SimConfig("fcfs", {}, PROFILE), ASKED)
    score = report.score
    assert score.sent == score.done == len(report.records)
    assert score.itl_s is not None
    assert score.itl_s.count == sum(r.tokens - 1 for r in report.records)
    assert 0 < score.output_tokens_per_s * ASKED.duration_s <= sum(r.tokens for r in report.records)
    assert [sample.at_s for sample in report.timeline[:3]] == [0.0, 0.5, 1.0]
    assert report.valid
    assert report.problems == ()


def test_what_does_not_end_in_time_has_failed() -> None:
    report = simulate(SimConfig("fcfs", {}, PROFILE), replace(ASKED, rate=50.0, drain_s=0.0))
    assert report.score.failed > 0
    assert report.score.reasons == {"not finished when the run ended": report.score.failed}
    assert all(r.done_s <= ASKED.duration_s for r in report.records)


def test_what_cannot_be_simulated_is_refused() -> None:
    with pytest.raises(InputError, match="no policy is named"):
        simulate(SimConfig("nothing", {}, PROFILE), ASKED)
    with pytest.raises(InputError, match="chunk"):
        simulate(SimConfig("static", {"chunk": "-1"}, PROFILE), ASKED)
    with pytest.raises(InputError, match="scale"):
        simulate(SimConfig("fcfs", {}, PROFILE), replace(ASKED, scale=100.0))
    with pytest.raises(InputError, match="pool of 10 pages"):
        simulate(SimConfig("fcfs", {}, PROFILE, pages=10), ASKED)


def test_the_command_prints_saves_draws_and_can_be_compared(tmp_path: Path) -> None:
    out = [tmp_path / name for name in ("a.json", "b.json")]
    common = ("--rate", "10", "--duration", "5", "--policy", "static")
    code, said = run(*common, "--policy-option", "mode=turns", "--json", str(out[0]), "--plot", str(tmp_path))
    assert code == 0, said
    assert "simulated time" in said
    assert "mode=turns" in said
    assert (tmp_path / "timeline.png").stat().st_size > 1000
    assert run(*common, "--profile", SHIPPED, "--json", str(out[1]))[0] == 0
    assert read_report(out[0]).settings.rate == 10
    compared = CliRunner().invoke(app, ["bench", "compare", *map(str, out)])
    assert compared.exit_code == 0, compared.output
    assert "TTFT p90" in compared.output


def test_the_goodput_command_searches(tmp_path: Path) -> None:
    file = tmp_path / "g.json"
    code, said = run(
        *("goodput", "--policy", "fcfs", "--trace", "long", "--start", "4", "--duration", "20", "--repeats", "1"),
        *("--tolerance", "0.2", "--json", str(file), "--plot", str(tmp_path)),
    )
    assert code == 0, said
    assert "goodput (tight SLO" in said
    assert (tmp_path / "rates.png").exists()
    found = read_goodput(file).found
    assert found.passed is not None
    assert 1 < found.passed < 20


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--policy", "nothing"), "no policy is named 'nothing'"),
        (("--trace", "nothing"), "no such trace file"),
        (("--profile", "nothing"), "no such profile file"),
        (("--policy", "fcfs", "--policy-option", "x"), "must be NAME=VALUE"),
        (("--rate", "0"), "rate must be above 0"),
        (("goodput", "--slo", "odd"), "--slo must be tight or loose"),
    ],
)
def test_wrong_usage_is_one_sentence_and_code_2(arguments: tuple[str, ...], said: str) -> None:
    code, output = run(*arguments)
    assert code == 2
    assert said in " ".join(output.split())


def test_a_broken_profile_names_its_field(tmp_path: Path) -> None:
    file = tmp_path / "p.json"
    file.write_text(json.dumps({"kind": "semipd profile", "format": 1}))
    code, output = run("--profile", str(file))
    assert code == 2
    assert "source is missing" in output


def test_help_names_what_there_is() -> None:
    code, output = run("--help")
    assert code == 0
    assert "--policy-option" in output
    assert "goodput" in output
