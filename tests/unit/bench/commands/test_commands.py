"""The commands that measure with runs and those that read reports: files, exit codes, no report where none is due."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from semipd.bench.commands.cli import bench_app
from semipd.bench.errors import InputError
from semipd.bench.runs import interference
from semipd.bench.runs.goodput import read_goodput
from semipd.bench.runs.interference import turns
from semipd.bench.runs.interference_run import read_interference
from semipd.bench.scoring import validity
from semipd.bench.scoring.report import RunReport
from semipd.bench.targets.sink import Sink
from semipd.bench.traces import TraceEntry, write_trace
from support.reports import SETTINGS, at_rate, report


@pytest.fixture(autouse=True)
def patient_validity(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine makes no run invalid here: what is tested is what commands do with runs."""
    monkeypatch.setattr(validity, "MAX_LATENESS_S", math.inf)
    monkeypatch.setattr(validity, "MAX_BUSY", math.inf)
    monkeypatch.setattr(interference, "FULL", 0.0)


def bench(*arguments: object) -> Result:
    return CliRunner().invoke(bench_app, [str(argument) for argument in arguments], env={"COLUMNS": "200"})


def saved(folder: Path, name: str, made: RunReport) -> Path:
    path = folder / f"{name}.json"
    made.save(path)
    return path


@pytest.fixture(scope="module")
def sink() -> Iterator[str]:
    with Sink(first_s=0.005, pace_s=0.01) as sink:
        yield f"grpc://{sink.address}"


def test_interference_prints_both_halves_and_keeps_every_gap(sink: str, tmp_path: Path) -> None:
    path = tmp_path / "new" / "interference.json"
    options = ["--decoding", 4, "--context", 8, "--output-tokens", 20, "--prompt-tokens", 50, "--prompt-rate", 10]
    times = ["--duration", 0.5, "--settle", 0.3, "--clients", 1]
    result = bench("interference", "--target", sink, *options, *times, "--json", path, "--plot", tmp_path)
    assert path.exists(), result.output
    kept = read_interference(path)
    assert result.exit_code == (0 if kept.valid else 1)
    assert "prompts: 5 of 5 answered" in result.output
    assert "ratio" in result.output
    assert kept.settings.decoding == 4
    assert 0.009 < kept.result.alone.gaps_s.p50 < 1.0
    prompts = [r for r in kept.records if r.index >= 4 * turns(kept.settings)]
    assert [(r.prompt_len, r.tokens) for r in prompts] == [(50, 16)] * 5
    assert all(r.sent_s >= 0.8 for r in prompts)
    assert sum(len(r.gaps_s) for r in kept.records) >= kept.result.alone.gaps_s.count
    assert (tmp_path / "interference.png").stat().st_size > 10_000


def test_goodput_keeps_its_runs_also_where_nothing_fails(sink: str, tmp_path: Path) -> None:
    path = tmp_path / "goodput.json"
    rates = ["--start", 20, "--highest", 20, "--repeats", 1, "--seed", 5]
    easy = tmp_path / "easy.jsonl"
    write_trace([TraceEntry(8, 3, 100.0, 100.0)], easy)  # which even a busy machine answers in time
    run = ["--trace", easy, "--duration", 0.3, "--clients", 1]
    result = bench("goodput", "--target", sink, *run, *rates, "--json", path, "--plot", tmp_path)
    assert result.exit_code == 1, result.output
    assert "the goodput is above 20 requests/s" in result.output
    assert [run.settings.seed for run in read_goodput(path).runs] == [5, 6]
    assert (tmp_path / "rates.png").stat().st_size > 10_000


@pytest.mark.parametrize("command", [["goodput", "--trace", "chat"], ["interference"]])
def test_an_unreachable_target_is_exit_code_3_and_no_report(command: list[str], tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    result = bench(*command, "--target", "grpc://127.0.0.1:9", "--json", path)
    assert result.exit_code == 3
    assert result.stderr.startswith("error: grpc://127.0.0.1:9: nobody answers there")
    assert not path.exists()


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["goodput", "--target", "ftp://a", "--trace", "chat"], "not a target"),
        (["goodput", "--target", "grpc://a:1", "--trace", "none.jsonl"], "no such trace file"),
        (["goodput", "--target", "grpc://a:1", "--trace", "chat", "--slo", "soft"], "--slo must be tight or loose"),
        (["goodput", "--target", "grpc://a:1", "--trace", "chat", "--start", "0"], "rates: "),
        (["goodput", "--target", "grpc://a:1", "--trace", "chat", "--share", "90"], "target: must be between"),
        (["interference", "--target", "a:1"], "not a target"),
        (["interference", "--target", "grpc://a:1", "--decoding", "0"], "decoding: must be at least 1"),
        (["interference", "--target", "grpc://a:1", "--json", "/dev/null/x.json"], "/dev/null: can't be made"),
    ],
)
def test_bad_input_is_a_sentence_and_exit_code_2(command: list[str], message: str) -> None:
    result = bench(*command)
    assert result.exit_code == 2
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_interference_is_refused_where_the_context_is_too_short(sink: str) -> None:
    result = bench("interference", "--target", sink, "--prompt-tokens", 20_000)
    assert result.exit_code == 2
    assert "20016 tokens, and the context of sink ends at 16384" in result.stderr


def test_compare_prints_ratios_and_draws_them(tmp_path: Path) -> None:
    base = saved(tmp_path, "base", report())
    slower = saved(tmp_path, "slower", report(replace(SETTINGS, seed=1), slower=1.5))
    result = bench("compare", base, slower, "--plot", tmp_path)
    assert result.exit_code == 0, result.output
    assert "×1.50" in result.stdout
    assert (tmp_path / "compared.png").stat().st_size > 10_000


def test_compare_refuses_different_rates_and_says_so_when_forced(tmp_path: Path) -> None:
    base, faster = saved(tmp_path, "base", report()), saved(tmp_path, "faster", report(at_rate(8.0)))
    refused = bench("compare", base, faster, "--plot", tmp_path)
    assert refused.exit_code == 2
    assert refused.stdout == ""
    assert "base and faster differ: rate 4.0 and 8.0" in refused.stderr
    assert not (tmp_path / "compared.png").exists()
    forced = bench("compare", base, faster, "--force", "--label", "A", "--label", "B")
    assert forced.exit_code == 0
    assert "warning: A and B differ: rate 4.0 and 8.0" in forced.stdout


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "can't be read"), ("{", "not JSON"), ("{}", "not a report"), ("[]", "not a report")],
)
def test_a_file_that_is_no_report_is_refused_by_name(content: str | None, message: str, tmp_path: Path) -> None:
    base, other = saved(tmp_path, "base", report()), tmp_path / "other.json"
    if content is not None:
        other.write_text(content)
    result = bench("compare", base, other)
    assert result.exit_code == 2
    assert f"{other}: {message}" in result.stderr


def test_a_report_with_a_field_of_another_type_is_refused_by_the_fields_name(tmp_path: Path) -> None:
    path = saved(tmp_path, "base", report())
    given = json.loads(path.read_text())
    given["score"]["attainment"] = "most"
    path.write_text(json.dumps(given))
    result = bench("compare", path, path)
    assert result.exit_code == 2
    assert "attainment" in result.stderr


def test_plot_draws_one_run_over_time_and_several_over_their_rates(tmp_path: Path) -> None:
    paths = [saved(tmp_path, f"at{rate:g}", report(at_rate(rate))) for rate in (2.0, 4.0)]
    assert bench("plot", paths[0], "--out", tmp_path / "one").exit_code == 0
    assert bench("plot", *paths, "--out", tmp_path / "two").exit_code == 0
    assert (tmp_path / "one" / "timeline.png").exists()
    assert (tmp_path / "two" / "rates.png").exists()


def test_plot_refuses_a_run_without_samples_and_runs_of_different_traces(tmp_path: Path) -> None:
    silent = saved(tmp_path, "silent", report(timeline=()))
    long = saved(tmp_path, "long", report(replace(SETTINGS, trace="long")))
    assert "no samples of the server's load" in bench("plot", silent, "--out", tmp_path).stderr
    assert "not of chat and long" in bench("plot", silent, long, "--out", tmp_path).stderr
    assert not list(tmp_path.glob("*.png"))


def test_labels_are_wanted_once_for_each_report(tmp_path: Path) -> None:
    base = saved(tmp_path, "base", report())
    result = bench("compare", base, base, "--label", "A")
    assert result.exit_code == InputError.exit_code
    assert "once for each of the 2 reports" in result.stderr
