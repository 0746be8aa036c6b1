"""The pictures of runs: what is drawn of a report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from semipd.bench.drawing.plots import Curve, RatePoint, ServerMoment, draw_rates, draw_timeline
from semipd.bench.errors import InputError
from semipd.bench.scoring.records import Outcome, RequestRecord
from semipd.bench.scoring.report import RunReport
from semipd.bench.scoring.score import distribution
from semipd.bench.scoring.timeline import LoadSample
from semipd.bench.traces import LOOSE


def draw_run(path: Path, report: RunReport) -> None:
    """Its timeline. Raises InputError where the target didn't tell its load."""
    settings = report.settings
    title = (
        f"{settings.trace} at {settings.rate:g} requests/s, seed {settings.seed}: {report.target.model}, "
        f"{100 * report.score.attainment:.1f} % inside the tight SLO"
    )
    draw_timeline(path, [moment(sample) for sample in report.timeline], settings.duration_s, marked(title, [report]))


def draw_runs(path: Path, labelled: Sequence[tuple[str, RunReport]]) -> None:
    """Latencies and attainment over the rate: a curve for each label, the runs of one rate pooled.

    Raises InputError where the runs are of different traces.
    """
    reports = [report for _, report in labelled]
    traces = sorted({report.settings.trace for report in reports})
    if len(traces) > 1:
        raise InputError(f"one picture over the rate is of one trace, not of {' and '.join(traces)}")
    labels = list(dict.fromkeys(label for label, _ in labelled))
    curves = [rate_curve(label, [report for name, report in labelled if name == label]) for label in labels]
    draw_rates(path, curves, marked(f"{traces[0]}: {', '.join(labels)}", reports))


def rate_curve(label: str, reports: Sequence[RunReport]) -> Curve:
    """Rates ascending."""
    rates = sorted({report.settings.rate for report in reports})
    return Curve(label, tuple(rate_point([r for r in reports if r.settings.rate == rate]) for rate in rates))


def rate_point(reports: Sequence[RunReport], spread: tuple[float, float] | None = None) -> RatePoint:
    """Makes the point of one rate from its runs, with all their requests pooled."""
    records: list[RequestRecord] = [record for report in reports for record in report.records]
    done = [record for record in records if record.outcome is Outcome.DONE]
    return RatePoint(
        rate=reports[0].settings.rate,
        ttft_s=distribution(r.ttft_s for r in done if r.ttft_s is not None),
        tpot_s=distribution(r.tpot_s for r in done if r.tpot_s is not None),
        attainment=sum(record.met() for record in records) / len(records),
        attainment_loose=sum(record.met(LOOSE) for record in records) / len(records),
        spread=spread,
    )


def moment(sample: LoadSample) -> ServerMoment:
    return ServerMoment(
        at_s=sample.at_s,
        waiting=sample.waiting,
        prefilling=sample.prefilling,
        decoding=sample.decoding,
        pages_used=sample.used_pages / sample.total_pages if sample.total_pages else 0.0,
        prefill_share=sample.prefill_share,
        decode_share=sample.decode_share,
    )


def marked(title: str, reports: Sequence[RunReport]) -> str:
    """A picture of an invalid run says so."""
    return title if all(report.valid for report in reports) else f"INVALID RUN: {title}"
