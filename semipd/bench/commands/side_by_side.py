"""Saved reports, compared and drawn for a person at a terminal."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from semipd.bench.drawing.pictures import draw_run, draw_runs
from semipd.bench.drawing.plots import draw_comparison
from semipd.bench.errors import InputError
from semipd.bench.scoring.compare import Labelled, check_comparable, metrics, table
from semipd.bench.scoring.report import read_report
from semipd.bench.writable import ready_to_write

UNDRAWN = {"TTFT p90", "TPOT p90", "largest gap p50", "end to end p50"}
"""Metrics that only the table shows, so that the plot stays on one screen."""

TABLE_WIDTH = 160
"""Columns of the table where the output is no terminal."""


def compare_files(paths: Sequence[Path], labels: Sequence[str], plot: Path | None, *, force: bool) -> None:
    """Prints the table and draws it. Raises InputError where the reports can't be read or compared."""
    ready_to_write(None, plot)
    labelled = [Labelled(name, read_report(path)) for name, path in zip(names(paths, labels), paths, strict=True)]
    console = Console()
    if not console.is_terminal:
        console.width = TABLE_WIDTH
    for difference in check_comparable(labelled, force):
        console.print(f"warning: {difference}", style="yellow", soft_wrap=True, markup=False)
    compared = metrics([one.report.score for one in labelled])
    console.print(table([one.label for one in labelled], compared))
    if plot is not None:
        base = labelled[0].report.settings
        title = f"{base.trace} at {base.rate:g} requests/s" + (" (forced)" if force else "")
        drawn = [metric.compared() for metric in compared if metric.name not in UNDRAWN and any(metric.values)]
        draw_comparison(plot / "compared.png", [one.label for one in labelled], drawn, title)


def plot_files(paths: Sequence[Path], labels: Sequence[str], folder: Path) -> None:
    """One report: its timeline. Several: latencies and attainment over the rate, a curve for each label."""
    ready_to_write(None, folder)
    reports = [read_report(path) for path in paths]
    if len(reports) == 1:
        draw_run(folder / "timeline.png", reports[0])
        return
    given = names(paths, labels) if labels else [f"{r.target.model}, {r.settings.target}" for r in reports]
    draw_runs(folder / "rates.png", list(zip(given, reports, strict=True)))


def names(paths: Sequence[Path], labels: Sequence[str]) -> list[str]:
    """The labels, or as much of the paths as tells them apart. Raises InputError where the numbers differ."""
    if labels:
        if len(labels) != len(paths):
            raise InputError(f"--label is wanted once for each of the {len(paths)} reports, or not at all")
        return list(labels)
    stems = [path.stem for path in paths]
    return stems if len(set(stems)) == len(stems) else [os.fspath(path) for path in paths]
