"""`semipd bench goodput`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from semipd.bench.commands.exits import FAILED, errors_as_messages
from semipd.bench.errors import InputError
from semipd.bench.runs.search import SearchSettings
from semipd.bench.settings import DRAIN_S, RunSettings


def goodput(
    target: Annotated[str, typer.Option(help="grpc://HOST:PORT or openai+http://HOST:PORT/v1.")],
    trace: Annotated[str, typer.Option(help="chat, mixed, long, or a file.")],
    start: Annotated[float, typer.Option(help="The first rate, in requests a second.")] = 1.0,
    slo: Annotated[str, typer.Option(help="tight, or loose (10/7.5 of it).")] = "tight",
    share: Annotated[float, typer.Option(help="Of the requests that must be inside their SLO.")] = 0.9,
    tolerance: Annotated[float, typer.Option(help="Ends when failed is at most this share above passed.")] = 0.05,
    repeats: Annotated[int, typer.Option(help="Runs at each rate, each with a seed of its own.")] = 3,
    duration: Annotated[float, typer.Option(help="Seconds in which the requests of a run arrive.")] = 60.0,
    seed: Annotated[int, typer.Option(help="Of the first run; each further run takes the next.")] = 0,
    lowest: Annotated[float, typer.Option(help="The lowest rate to try.")] = 0.01,
    highest: Annotated[float, typer.Option(help="The highest rate to try.")] = 10_000.0,
    most_runs: Annotated[int, typer.Option(help="Gives up after so many runs.")] = 120,
    clients: Annotated[int | None, typer.Option(help="Load processes.")] = None,
    model: Annotated[str | None, typer.Option(help="Which of the target's models.")] = None,
    vocab_size: Annotated[int | None, typer.Option(help="Prompts are drawn below it.")] = None,
    scale: Annotated[float, typer.Option(help="All lengths are multiplied by it.")] = 1.0,
    drain: Annotated[float, typer.Option(help="Seconds to wait for answers after the last arrival.")] = DRAIN_S,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the result there, with every run.")] = None,
    plot: Annotated[Path | None, typer.Option(help="A folder for rates.png.")] = None,
) -> None:
    """Search for the highest rate at which the wanted share of requests is inside its SLO.

    Exit code: 0 found, 1 not found, an invalid run or a target that fails, 2 wrong usage, 3 nobody answers, 130 Ctrl-C.
    """
    from semipd.bench.runs.goodput import search_goodput  # noqa: PLC0415 - `semipd --help` stays quick

    base = RunSettings(target, trace, start, duration, seed, clients, model, vocab_size, scale, drain)
    with errors_as_messages():
        search = settings_of(start, share, tolerance, repeats, lowest, highest, seed, most_runs)
        found = search_goodput(base, search, loose=is_loose(slo), json_file=json_file, plot=plot)
    if not found:
        raise typer.Exit(FAILED)


def is_loose(slo: str) -> bool:
    """Returns whether the option --slo names the loose SLO. Raises InputError where it names neither."""
    if slo not in ("tight", "loose"):
        raise InputError(f"--slo must be tight or loose, not {slo}")
    return slo == "loose"


def settings_of(
    start: float,
    share: float,
    tolerance: float,
    repeats: int,
    lowest: float,
    highest: float,
    seed: int,
    most_runs: int,
) -> SearchSettings:
    """Makes the settings from the options of the same names. Raises InputError."""
    try:
        return SearchSettings(
            start, share, tolerance, repeats, lowest=lowest, highest=highest, first_seed=seed, most_runs=most_runs
        )
    except ValueError as error:
        raise InputError(str(error)) from None
