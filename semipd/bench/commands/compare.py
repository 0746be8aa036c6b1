"""`semipd bench compare` and `semipd bench plot`: what is made of reports that were written before."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from semipd.bench.commands.exits import errors_as_messages


def compare(
    reports: Annotated[list[Path], typer.Argument(help="Reports of `semipd bench run`; the first is the base.")],
    plot: Annotated[Path | None, typer.Option(help="A folder for compared.png.")] = None,
    label: Annotated[
        list[str] | None, typer.Option(help="What a report is called; once for each. [dim]default: its file[/]")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Also what differs in trace, rate or validity.")] = False,
) -> None:
    """Print the figures of several reports side by side, and their ratios to the first.

    Exit code: 0, or 2 where a report can't be read or the runs are not comparable.
    """
    from semipd.bench.commands.side_by_side import compare_files  # noqa: PLC0415 - `semipd --help` stays quick

    with errors_as_messages():
        compare_files(reports, label or [], plot, force=force)


def plot(
    reports: Annotated[list[Path], typer.Argument(help="Reports of `semipd bench run`.")],
    out: Annotated[Path, typer.Option(help="The folder to write to; made if it is not there.")],
    label: Annotated[
        list[str] | None,
        typer.Option(help="What a report's curve is called; once for each. [dim]default: its model[/]"),
    ] = None,
) -> None:
    """Draw one report's timeline.png, or rates.png with latencies and attainment of several over their rates.

    Exit code: 0, or 2 where a report can't be read or drawn.
    """
    from semipd.bench.commands.side_by_side import plot_files  # noqa: PLC0415 - `semipd --help` stays quick

    with errors_as_messages():
        plot_files(reports, label or [], out)
