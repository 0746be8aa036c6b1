"""Reports side by side: the first is the base, the others are ratios to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from rich.table import Table
from rich.text import Text

from semipd.bench.errors import InputError
from semipd.bench.scoring.report import RunReport
from semipd.bench.scoring.score import Distribution, Score
from semipd.bench.settings import RunSettings


class Better(Enum):
    LOWER = "lower"
    HIGHER = "higher"


@dataclass(frozen=True, slots=True)
class ComparedMetric:
    """One metric of several reports, in the order of the reports; None where a report lacks it."""

    name: str
    unit: str
    values: tuple[float | None, ...]


@dataclass(frozen=True, slots=True)
class Metric:
    """A figure of every report, in `unit`; None where a report lacks it."""

    name: str
    unit: str
    better: Better
    values: tuple[float | None, ...]

    def ratios(self) -> tuple[float | None, ...]:
        """Returns the ratio of each value to the first; None where either is missing or the first is zero."""
        base = self.values[0]
        return tuple(None if not base or value is None else value / base for value in self.values)

    def compared(self) -> ComparedMetric:
        return ComparedMetric(self.name, self.unit, self.values)


@dataclass(frozen=True, slots=True)
class Labelled:
    """A report and what it is called in the table."""

    label: str
    report: RunReport


def differences(base: RunSettings, other: RunSettings) -> list[str]:
    """Lists, in words, what makes figures of the two runs incomparable."""
    return [
        f"{name} {mine} and {theirs}"
        for name, mine, theirs in (
            ("trace", base.trace, other.trace),
            ("rate", base.rate, other.rate),
            ("duration", base.duration_s, other.duration_s),
            ("scale", base.scale, other.scale),
        )
        if mine != theirs
    ]


def check_comparable(reports: Sequence[Labelled], force: bool) -> list[str]:
    """The differences, for the reader to see. Raises InputError where there are any and `force` is not set."""
    if len(reports) < 2:
        raise InputError("compare needs two reports or more")
    base = reports[0]
    found = [
        f"{base.label} and {other.label} differ: {difference}"
        for other in reports[1:]
        for difference in differences(base.report.settings, other.report.settings)
    ]
    found += [f"{labelled.label} is invalid: {why}" for labelled in reports for why in labelled.report.problems]
    if found and not force:
        raise InputError("\n".join([*found, "Ratios of such runs mean little; --force prints them all the same."]))
    return found


SPREADS = (
    ("TTFT", "ttft_s", ("p50", "p90", "p99")),
    ("TPOT", "tpot_s", ("p50", "p90", "p99")),
    ("ITL", "itl_s", ("p50", "p99")),
    ("largest gap", "largest_gap_s", ("p50", "p99")),
    ("end to end", "end_to_end_s", ("p50", "p99")),
)


def metrics(scores: Sequence[Score]) -> list[Metric]:
    """Latencies in milliseconds, shares in percent."""
    found = [
        Metric(f"{title} {q}", "ms", Better.LOWER, tuple(milliseconds(getattr(score, name), q) for score in scores))
        for title, name, quantiles in SPREADS
        for q in quantiles
    ]
    for title, name, unit, factor in (
        ("output", "output_tokens_per_s", "tokens/s", 1.0),
        ("inside tight SLO", "attainment", "%", 100.0),
        ("inside loose SLO", "attainment_loose", "%", 100.0),
        ("good requests", "good_requests_per_s", "requests/s", 1.0),
    ):
        found.append(Metric(title, unit, Better.HIGHER, tuple(factor * getattr(score, name) for score in scores)))
    for title, name in (("refused", "refused"), ("failed", "failed")):
        found.append(Metric(title, "requests", Better.LOWER, tuple(float(getattr(score, name)) for score in scores)))
    return found


def milliseconds(seen: Distribution | None, quantile: str) -> float | None:
    return None if seen is None else 1000 * float(getattr(seen, quantile))


def table(labels: Sequence[str], compared: Sequence[Metric]) -> Table:
    """A column of values for each report, and a column of ratios for each but the first."""
    shown = Table(title=f"base: {labels[0]}", title_justify="left", header_style="bold", box=None, padding=(0, 2, 0, 0))
    shown.add_column("")
    shown.add_column("unit", style="dim")
    shown.add_column(labels[0], justify="right")
    for label in labels[1:]:
        shown.add_column(label, justify="right")
        shown.add_column("ratio", justify="right")
    for metric in compared:
        cells: list[str | Text] = [value_text(metric.values[0])]
        for value, ratio in zip(metric.values[1:], metric.ratios()[1:], strict=True):
            cells += [value_text(value), ratio_text(ratio, metric.better)]
        shown.add_row(metric.name, metric.unit, *cells)
    return shown


def value_text(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= 1000 or value == int(value) else f"{value:.4g}"


def ratio_text(ratio: float | None, better: Better) -> Text:
    """Green for better, red for worse, by more than 2 percent."""
    if ratio is None:
        return Text("-")
    gain = ratio if better is Better.HIGHER else 2 - ratio
    return Text(f"×{ratio:.2f}", "green" if gain > 1.02 else "red" if gain < 0.98 else "")
