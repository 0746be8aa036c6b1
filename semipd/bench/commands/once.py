"""One run for a person at a terminal: a progress bar, the report as a table, and its files."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bar

from semipd.bench.drawing.pictures import draw_run
from semipd.bench.drawing.table import table
from semipd.bench.errors import InputError
from semipd.bench.load.drive import Progress
from semipd.bench.runs.run import run
from semipd.bench.settings import RunSettings

TABLE_WIDTH = 120
"""Columns of the table where the output is no terminal."""


def run_once(settings: RunSettings, json_file: Path | None, plot: Path | None, *, gaps: bool) -> bool:
    """Runs once, prints and saves the report, and returns whether the run was valid. Raises CommandError."""
    for path in (json_file.parent if json_file is not None else None, plot):
        if path is not None:
            make_folder(path)  # before the run: a minute later is a bad time to hear of it
    with progress_bar(settings) as progress:
        report = asyncio.run(run(settings, progress))
    console = Console()
    if not console.is_terminal:
        console.width = TABLE_WIDTH
    console.print(table(report))
    if json_file is not None:
        report.save(json_file, gaps=gaps)
    if plot is not None and report.timeline:
        draw_run(plot / "timeline.png", report)
    elif plot is not None:
        print("no timeline was drawn: the target does not tell its load", file=sys.stderr)
    return report.valid


def make_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{path}: can't be made: {error.strerror}") from error


@contextmanager
def progress_bar(settings: RunSettings) -> Iterator[Callable[[Progress], None] | None]:
    """Shows a progress bar on standard error while the run lasts; yields None where that is no terminal."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield None
        return
    columns = (BarColumn(), TextColumn("{task.fields[said]}"))
    with Bar(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=settings.duration_s, said="getting ready")

        def show(seen: Progress) -> None:
            elapsed = min(seen.elapsed_s, settings.duration_s)
            more = f"{seen.elapsed_s:.0f} s" if seen.elapsed_s <= settings.duration_s else "waiting for the last"
            said = f"{more}: {seen.sent} of {seen.due} sent, {seen.sent - seen.ended} running"
            bar.update(task, completed=elapsed, said=said)

        yield show
