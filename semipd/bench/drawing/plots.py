"""Pictures as PNG files, 1200 pixels wide. What is drawn comes as plain values; nothing is measured or read here.

matplotlib is imported when the first picture is drawn, so that only who draws needs it (the extra `bench`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from semipd.bench.errors import InputError
from semipd.bench.scoring.compare import ComparedMetric
from semipd.bench.scoring.score import Distribution

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 100
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8B6914")
"""Okabe and Ito's: told apart by colour-blind readers too."""
PREFILL, DECODE, PAGES = "#CC79A7", "#0072B2", "#009E73"
TARGET = 0.9
TAIL_POINTS = 5000


@dataclass(frozen=True, slots=True)
class RatePoint:
    """One run, or several pooled. `attainment` is from 0 to 1, `spread` its confidence interval, where there is one."""

    rate: float
    ttft_s: Distribution | None
    tpot_s: Distribution | None
    attainment: float
    attainment_loose: float
    spread: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True)
class Curve:
    """One system at several rates, ascending."""

    label: str
    points: tuple[RatePoint, ...]


@dataclass(frozen=True, slots=True)
class ServerMoment:
    """A sample of the server's load, `at_s` seconds after the run began. Pages from 0 to 1, shares in percent."""

    at_s: float
    waiting: int
    prefilling: int
    decoding: int
    pages_used: float
    prefill_share: float
    decode_share: float


@dataclass(frozen=True, slots=True)
class GapCurve:
    """Times between two tokens of a sequence, in seconds."""

    label: str
    seconds: tuple[float, ...]
    spread: Distribution


def draw_rates(path: Path, curves: Sequence[Curve], title: str) -> None:
    """Latency percentiles and SLO attainment over the rate of arrivals."""
    figure = blank(title, height=900)
    (ttft, tpot), (tight, loose) = figure.subplots(2, 2, sharex=True)
    for axes, name in ((ttft, "time to first token, TTFT (s)"), (tpot, "time per output token, TPOT (ms)")):
        axes.set_ylabel(name)
        axes.set_yscale("log")
    for colour, curve in zip(colours(len(curves)), curves, strict=True):
        latency_lines(ttft, curve, [p.ttft_s for p in curve.points], 1.0, colour)
        latency_lines(tpot, curve, [p.tpot_s for p in curve.points], 1000.0, colour)
        rates = [point.rate for point in curve.points]
        tight.plot(rates, [100 * p.attainment for p in curve.points], "o-", color=colour, label=curve.label)
        loose.plot(rates, [100 * p.attainment_loose for p in curve.points], "o-", color=colour, label=curve.label)
        for point in curve.points:
            if point.spread is not None:
                tight.plot([point.rate] * 2, [100 * end for end in point.spread], color=colour, alpha=0.5)
    for axes, name in ((tight, "inside the tight SLO (%)"), (loose, "inside the loose SLO (%)")):
        axes.axhline(
            100 * TARGET, color="0.4", linestyle="--", linewidth=1, label=f"goodput needs {100 * TARGET:.0f} %"
        )
        axes.set_ylim(-3, 103)
        axes.set_ylabel(name)
        axes.set_xlabel("rate of arrivals (requests/s)")
    for axes in (ttft, tpot):
        plain_numbers(axes)
    for axes in (ttft, tight):
        finish(axes)
    for axes in (tpot, loose):  # the lines mean the same as on the left
        finish(axes, legend=False)
    save(figure, path)


def latency_lines(axes: Axes, curve: Curve, seen: Sequence[Distribution | None], factor: float, colour: str) -> None:
    for name, style in (("p50", "o-"), ("p90", "s--"), ("p99", "^:")):
        pairs = [(p.rate, factor * getattr(d, name)) for p, d in zip(curve.points, seen, strict=True) if d is not None]
        if pairs:
            axes.plot(*zip(*pairs, strict=True), style, color=colour, markersize=5, label=f"{curve.label} {name}")


def draw_timeline(path: Path, moments: Sequence[ServerMoment], duration_s: float, title: str) -> None:
    """Queue, running batch, page use and partition shares of one run. Raises InputError where nothing was sampled."""
    if not moments:
        raise InputError("the report has no samples of the server's load: only a semipd server tells it")
    figure = blank(title, height=900)
    queue, batch, pages, shares = figure.subplots(4, 1, sharex=True)
    at = [moment.at_s for moment in moments]
    queue.plot(at, [m.waiting for m in moments], color=COLOURS[1], label="waiting")
    queue.plot(at, [m.prefilling for m in moments], color=PREFILL, label="prefilling")
    queue.set_ylabel("queue\n(requests)")
    batch.fill_between(at, [m.decoding for m in moments], step="post", color=DECODE, alpha=0.35)
    batch.step(at, [m.decoding for m in moments], where="post", color=DECODE, label="decoding")
    batch.set_ylabel("running batch\n(requests)")
    pages.plot(at, [100 * m.pages_used for m in moments], color=PAGES, label="KV pages in use")
    pages.set_ylabel("page use\n(%)")
    shares.step(at, [m.prefill_share for m in moments], where="post", color=PREFILL, linewidth=3, label="prefill")
    shares.step(at, [m.decode_share for m in moments], where="post", color=DECODE, linestyle="--", label="decode")
    shares.set_ylabel("share of the\ndevice (%)")
    shares.set_xlabel("time since the run began (s)")
    for axes in (pages, shares):
        axes.set_ylim(-3, 108)
    for axes in (queue, batch, pages, shares):
        if axes not in (pages, shares):
            axes.set_ylim(0, max(1.0, axes.get_ylim()[1]))
        axes.axvline(duration_s, color="0.4", linestyle="--", linewidth=1)
        finish(axes)
    above = queue.get_xaxis_transform()  # x in seconds, y from 0 at the bottom to 1 at the top
    queue.text(duration_s, 1.02, "last arrival", transform=above, ha="center", va="bottom", fontsize=9, color="0.3")
    save(figure, path)


def draw_comparison(path: Path, labels: Sequence[str], metrics: Sequence[ComparedMetric], title: str) -> None:
    """A panel of bars for each metric; the first report is the base of the ratios written on the bars."""
    columns = 4 if len(metrics) > 6 else 3
    rows = -(-len(metrics) // columns)
    figure = blank(title, height=120 + 300 * rows)
    panels = figure.subplots(rows, columns, squeeze=False).flatten()
    for axes, metric in zip(panels, metrics, strict=False):
        compare_bars(axes, metric, len(labels))
    for axes in panels[len(metrics) :]:
        axes.axis("off")
    handles = [
        panels[0].bar([0], [0], color=colour, label=label)
        for colour, label in zip(colours(len(labels)), labels, strict=True)
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(4, len(labels)), frameon=False)
    save(figure, path)


def compare_bars(axes: Axes, metric: ComparedMetric, count: int) -> None:
    base = metric.values[0]
    highest = max((value for value in metric.values if value is not None), default=0.0)
    for place, (value, colour) in enumerate(zip(metric.values, colours(count), strict=True)):
        if value is None:
            axes.text(place, 0, "none", ha="center", va="bottom", color="0.4", fontsize=9)
            continue
        axes.bar(place, value, 0.75, color=colour)
        ratio = f"\n×{value / base:.2f}" if place and base else ""
        axes.text(place, value, f"{rounded(value)}{ratio}", ha="center", va="bottom", fontsize=9)
    axes.set_title(metric.name, fontsize=11)
    axes.set_ylabel(metric.unit)
    axes.set_ylim(0, 1.28 * highest if highest else 1)
    axes.set_xlim(-0.7, count - 0.3)
    axes.set_xticks([])
    axes.grid(axis="y", alpha=0.3)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def draw_interference(path: Path, halves: Sequence[GapCurve], title: str) -> None:
    """Draws the distribution of the gap between tokens without and with arriving prompts, and its p50 and p99."""
    figure = blank(title, height=560)
    curve, bars = figure.subplots(1, 2, width_ratios=[3, 2])
    palette = (DECODE, COLOURS[1], *COLOURS[2:])
    width = 0.8 / len(halves)
    for number, (half, colour) in enumerate(zip(halves, palette, strict=False)):
        curve.step(*tail(half.seconds), where="pre", color=colour, label=half.label)
        values = [1000 * half.spread.p50, 1000 * half.spread.p99, 1000 * half.spread.max]
        places = [place + (number - (len(halves) - 1) / 2) * width for place in range(3)]
        drawn = bars.bar(places, values, 0.92 * width, color=colour, label=half.label)
        bars.bar_label(drawn, [rounded(value) for value in values], fontsize=9)
    curve.set_xscale("log")
    curve.set_yscale("log")
    # what is far shorter than a step are messages that were read together; they would take half of the picture
    curve.set_xlim(left=1000 * min(half.spread.p50 for half in halves) / 5)
    plain_numbers(curve, both=True)
    curve.set_xlabel("gap between two tokens (ms)")
    curve.set_ylabel("share of the gaps at least as long")
    bars.set_yscale("log")
    bars.margins(y=0.12)
    plain_numbers(bars)
    bars.set_xticks(range(3), ["p50", "p99", "longest"])
    bars.set_ylabel("gap between two tokens (ms)")
    for axes in (curve, bars):
        finish(axes)
    save(figure, path)


def draw_gaps_over_time(
    path: Path, gaps: Sequence[tuple[float, float]], events: Sequence[tuple[float, str]], title: str
) -> None:
    """Each gap between two tokens at the moment when it ended, (at, gap) in seconds, and what happened when.

    Raises InputError where there is no gap.
    """
    if not gaps:
        raise InputError("there are no gaps to draw: no stream had two tokens")
    figure = blank(title, height=560)
    axes = figure.subplots()
    # the longest are the subject; of the others as many as a picture can show
    ordered = sorted(gaps, key=lambda gap: gap[1])
    stride = max(1, (len(ordered) - TAIL_POINTS) // TAIL_POINTS)
    shown = [*ordered[: max(0, len(ordered) - TAIL_POINTS) : stride], *ordered[-TAIL_POINTS:]]
    axes.plot(
        [at for at, _ in shown], [1000 * gap for _, gap in shown], ".", color=DECODE, markersize=3, rasterized=True
    )
    axes.set_yscale("log")
    axes.set_ylim(bottom=1000 * max(1e-6, ordered[len(ordered) // 2][1]) / 10)
    for number, (at, name) in enumerate(events):
        axes.axvline(at, color=COLOURS[1], linestyle="--", linewidth=1)
        height = 0.98 - 0.06 * (number % 4)
        axes.text(at, height, f" {name}", transform=axes.get_xaxis_transform(), va="top", fontsize=9, color=COLOURS[1])
    plain_numbers(axes)
    axes.set_xlabel("time since the run began (s)")
    axes.set_ylabel("gap between two tokens (ms)")
    finish(axes, legend=False)
    save(figure, path)


def tail(seconds: Sequence[float]) -> tuple[list[float], list[float]]:
    """(milliseconds, share of the gaps at least as long), ascending; every gap of the longest, every n-th of the rest.

    The tail is the subject: on a log scale it is seen here, where a plain cumulative distribution hides it at its top.
    """
    ordered = sorted(seconds)
    count = len(ordered)
    stride = max(1, count // TAIL_POINTS)
    kept = [*range(0, max(0, count - TAIL_POINTS), stride), *range(max(0, count - TAIL_POINTS), count)]
    return [1000 * ordered[i] for i in kept], [(count - i) / count for i in kept]


def blank(title: str, height: int) -> Figure:
    """An empty figure of 1200 x `height` pixels. Raises InputError where matplotlib isn't installed."""
    try:
        from matplotlib.figure import Figure  # noqa: PLC0415 - only who draws needs it
    except ImportError:
        raise InputError("pictures need matplotlib: pip install 'semipd[bench]'") from None
    figure = Figure(figsize=(1200 / DPI, height / DPI), dpi=DPI, layout="constrained")
    figure.suptitle(title, fontsize=13)
    return figure


def colours(count: int) -> list[str]:
    return [COLOURS[i % len(COLOURS)] for i in range(count)]


def rounded(value: float) -> str:
    """Three digits, and all those before the point."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def plain_numbers(axes: Axes, both: bool = False) -> None:
    """0.01 and 100 rather than powers of ten, and as many of them as there is room for. Call it when all is drawn."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter  # noqa: PLC0415 - see blank

    for axis in (axes.xaxis, axes.yaxis) if both else (axes.yaxis,):
        low, high = axis.get_view_interval()
        decades = math.log10(high / low) if 0 < low < high else 1.0
        subs = (1.0, 2.0, 3.0, 5.0) if decades < 2 else (1.0, 3.0) if decades < 4 else (1.0,)
        axis.set_major_locator(LogLocator(subs=subs))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_formatter(NullFormatter())


def finish(axes: Axes, legend: bool = True) -> None:
    axes.grid(alpha=0.3)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if legend:
        axes.legend(fontsize=9, framealpha=0.85)


def save(figure: Figure, path: Path) -> None:
    try:
        figure.savefig(path, format="png")
    except OSError as error:
        raise InputError(f"{path}: can't be written: {error.strerror}") from None
