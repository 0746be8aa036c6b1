"""Reports side by side: ratios, and the refusal to compare what is not comparable."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from rich.console import Console

from semipd.bench.errors import InputError
from semipd.bench.scoring.compare import Better, Labelled, Metric, check_comparable, metrics, ratio_text, table
from support.reports import SETTINGS, at_rate, report

A, B = Labelled("A", report(met=90)), Labelled("B", report(met=45, slower=1.5))


def values(name: str) -> Metric:
    return next(metric for metric in metrics([A.report.score, B.report.score]) if metric.name == name)


def test_ratios_are_to_the_first_report() -> None:
    assert values("TTFT p50").values == pytest.approx((50.0, 500.0))
    assert values("TPOT p50").ratios() == pytest.approx((1.0, 1.5))
    assert values("inside tight SLO").values == pytest.approx((90.0, 45.0))
    assert values("inside tight SLO").ratios() == pytest.approx((1.0, 0.5))


def test_what_a_report_lacks_or_a_base_of_zero_has_no_ratio() -> None:
    lacking = replace(B.report.score, ttft_s=None)
    metric = next(m for m in metrics([A.report.score, lacking]) if m.name == "TTFT p50")
    assert metric.values[1] is None
    assert metric.ratios() == (1.0, None)
    assert values("refused").ratios() == (None, None)


def test_the_table_has_every_metric_of_every_report_and_names_the_base() -> None:
    console = Console(width=120, file=io.StringIO())
    compared = metrics([A.report.score, B.report.score, A.report.score])
    with console.capture() as captured:
        console.print(table(["A", "B", "C"], compared))
    text = captured.get()
    assert "base: A" in text
    rows = {row.split("  ")[0]: row.split() for row in text.splitlines()}
    assert rows["TPOT p50"][-5:] == ["20", "30", "×1.50", "20", "×1.00"]
    assert all(metric.name in rows for metric in compared)


def test_better_is_green_and_worse_is_red_whichever_way_a_metric_goes() -> None:
    assert ratio_text(0.5, Better.LOWER).style == ratio_text(2.0, Better.HIGHER).style == "green"
    assert ratio_text(2.0, Better.LOWER).style == ratio_text(0.5, Better.HIGHER).style == "red"
    assert ratio_text(1.01, Better.LOWER).style == ""


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (replace(SETTINGS, trace="long"), "A and B differ: trace chat and long"),
        (at_rate(8.0), "A and B differ: rate 4.0 and 8.0"),
        (replace(SETTINGS, duration_s=20.0), "duration 10.0 and 20.0"),
        (replace(SETTINGS, scale=0.5), "scale 1.0 and 0.5"),
    ],
)
def test_runs_that_differ_are_refused_with_the_difference_unless_forced(settings: object, message: str) -> None:
    other = Labelled("B", report(settings))  # type: ignore[arg-type]
    with pytest.raises(InputError, match=message):
        check_comparable([A, other], force=False)
    assert message in check_comparable([A, other], force=True)[0]


def test_another_seed_target_or_model_is_comparable() -> None:
    other = replace(SETTINGS, seed=9, target="openai+http://127.0.0.1:8000/v1", model="tiny")
    assert check_comparable([A, Labelled("B", report(other))], force=False) == []


def test_an_invalid_run_is_refused_with_its_reason_unless_forced() -> None:
    invalid = Labelled("B", report(problems=("the client fell behind",)))
    with pytest.raises(InputError, match="B is invalid: the client fell behind"):
        check_comparable([A, invalid], force=False)
    assert check_comparable([A, invalid], force=True) == ["B is invalid: the client fell behind"]


def test_one_report_alone_is_not_compared() -> None:
    with pytest.raises(InputError, match="two reports"):
        check_comparable([A], force=True)
