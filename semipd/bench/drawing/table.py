"""A run's report for the terminal."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from semipd.bench.scoring.report import RunReport
from semipd.bench.scoring.score import Distribution, Score

LATENCIES = (
    ("TTFT", "ttft_s"),
    ("TPOT", "tpot_s"),
    ("ITL", "itl_s"),
    ("largest gap", "largest_gap_s"),
    ("end to end", "end_to_end_s"),
    ("queue", "queue_s"),
)
REASONS = 5
"""Number of failure reasons that are shown, the most common first."""


def table(report: RunReport) -> RenderableType:
    """One column of what was asked and counted, and the latencies below it."""
    return Group(*_validity(report), _summary(report), Text(), _latencies(report.score), *_reasons(report.score))


def _validity(report: RunReport) -> list[Text]:
    if report.valid:
        return []
    return [Text("INVALID: these figures say nothing about the target", "bold red")] + [
        Text(f"  {problem}", "red") for problem in report.problems
    ]


def _summary(report: RunReport) -> Table:
    score, settings, target = report.score, report.settings, report.target
    server = ", ".join(f"{name} {value}" for name, value in target.server.items() if value)
    scaled = "" if settings.scale == 1.0 else f", lengths x {settings.scale:g}"
    rows = Table.grid(padding=(0, 2))
    rows.add_column(style="dim")
    rows.add_column()
    for name, value in (
        ("target", f"{settings.target}, {target.model}" + (f" ({server})" if server else "")),
        (
            "load",
            f"{settings.trace} at {settings.rate:g} requests/s for {settings.duration_s:g} s, "
            f"seed {settings.seed}{scaled}",
        ),
        ("requests", f"{score.sent} sent, {score.done} done, {score.refused} refused, {score.failed} failed"),
        ("throughput", f"{score.output_tokens_per_s:.1f} output tokens/s, {score.total_tokens_per_s:.1f} with prompts"),
        (
            "inside the SLO",
            f"tight {score.attainment:.1%} (TTFT {score.ttft_attainment:.1%}, TPOT {score.tpot_attainment:.1%}), "
            f"loose {score.attainment_loose:.1%}",
        ),
        ("good requests", f"{score.good_requests_per_s:.3g} a second inside the tight SLO"),
        ("client", _client(report)),
        ("tokens counted", target.counting),
    ):
        rows.add_row(name, value)
    return rows


def _client(report: RunReport) -> str:
    if not report.clients:
        return "none: in simulated time nobody is late"
    busy = ", ".join(f"{client.busy:.0%}" for client in report.clients)
    late = report.lateness_s
    return (
        f"{len(report.clients)} load process{'es' if len(report.clients) > 1 else ''}, {busy} busy; sends late by "
        f"{late.p50 * 1e3:.1f} ms p50, {late.p99 * 1e3:.1f} p99, {late.max * 1e3:.1f} at most"
    )


def _latencies(score: Score) -> Table:
    shown = Table(header_style="bold", box=None, padding=(0, 2, 0, 0))
    shown.add_column("milliseconds")
    for name in ("p50", "p90", "p99", "mean"):
        shown.add_column(name, justify="right")
    for title, name in LATENCIES:
        seen: Distribution | None = getattr(score, name)
        values = () if seen is None else (seen.p50, seen.p90, seen.p99, seen.mean)
        shown.add_row(title, *([f"{value * 1e3:,.2f}" for value in values] or ["-"] * 4))
    return shown


def _reasons(score: Score) -> list[Text]:
    told = [Text(f"{count} x {reason}", "yellow") for reason, count in list(score.reasons.items())[:REASONS]]
    more = len(score.reasons) - len(told)
    return [Text(), *told, *([Text(f"and {more} other reasons", "yellow")] if more > 0 else [])] if told else []
