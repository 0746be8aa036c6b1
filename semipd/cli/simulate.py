"""The command `semipd simulate`: a policy under a trace, in simulated time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeAlias

import typer

from semipd.bench.settings import DRAIN_S, RunSettings
from semipd.cli import exits

if TYPE_CHECKING:
    from semipd.bench.runs.goodput import Runner
    from semipd.sim.run import SimConfig

SERVER = "The simulated server"

Policy: TypeAlias = Annotated[str, typer.Option(help="As `semipd policies` lists them.")]
PolicyOption: TypeAlias = Annotated[
    list[str] | None, typer.Option(metavar="NAME=VALUE", help="An option of the policy. May be given several times.")
]
Trace: TypeAlias = Annotated[str, typer.Option(help="chat, mixed, long, or a file of JSON lines.")]
ProfileFile: TypeAlias = Annotated[
    str, typer.Option(help="What `semipd profile` recorded: a file, or one that ships, by its name.")
]
Scale: TypeAlias = Annotated[float, typer.Option(help="Multiply all lengths by it.")]
Drain: TypeAlias = Annotated[float, typer.Option(help="Seconds to wait for answers after the last arrival.", min=0)]
Pages: TypeAlias = Annotated[
    int,
    typer.Option(
        min=0, help="Pages of 16 tokens in the pool. 0: what fits beside the weights.", rich_help_panel=SERVER
    ),
]
MaxBatchTokens: TypeAlias = Annotated[
    int, typer.Option(min=1, help="Prompt tokens in one prefill batch.", rich_help_panel=SERVER)
]
MaxRunning: TypeAlias = Annotated[
    int, typer.Option(min=1, help="Sequences in the decode batch.", rich_help_panel=SERVER)
]
MaxWaiting: TypeAlias = Annotated[
    int, typer.Option(min=1, help="Requests in the queue; beyond, they are refused.", rich_help_panel=SERVER)
]
SHIPPED = "h200-llama-3-8b"

simulate_app = typer.Typer(rich_markup_mode="rich", context_settings={"help_option_names": ["-h", "--help"]})


@simulate_app.callback(invoke_without_command=True)
def simulate(
    context: typer.Context,
    policy: Policy = "adaptive",
    policy_option: PolicyOption = None,
    trace: Trace = "chat",
    rate: Annotated[float, typer.Option(help="Requests a second, on average (Poisson arrivals).")] = 10.0,
    duration: Annotated[float, typer.Option(help="Seconds in which requests arrive.")] = 60.0,
    profile: ProfileFile = SHIPPED,
    seed: Annotated[int, typer.Option(help="Of the arrivals.")] = 0,
    scale: Scale = 1.0,
    drain: Drain = DRAIN_S,
    pages: Pages = 0,
    max_batch_tokens: MaxBatchTokens = 8192,
    max_running: MaxRunning = 512,
    max_waiting: MaxWaiting = 512,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the report there, with each request.")] = None,
    plot: Annotated[Path | None, typer.Option(help="A folder for timeline.png.")] = None,
) -> None:
    """Replay a trace through a policy in simulated time, and report as `semipd bench run` does.

    An hour of traffic takes less than a minute, needs no GPU, and is the same each time. `semipd simulate goodput`
    searches for the highest rate. docs/simulate.md says what is simulated and how far it can be trusted.

    Exit code: 0 a valid run, 1 the policy had to be replaced, or nothing was done, 2 wrong usage, 130 Ctrl-C.
    """
    if context.invoked_subcommand is not None:
        return
    from rich.console import Console

    from semipd.bench.commands.exits import errors_as_messages
    from semipd.bench.commands.once import TABLE_WIDTH
    from semipd.bench.drawing.pictures import draw_run
    from semipd.bench.drawing.table import table
    from semipd.bench.writable import ready_to_write
    from semipd.sim.run import simulate as run

    with errors_as_messages():
        ready_to_write(json_file, plot)
        config = opened(policy, policy_option, profile, pages, max_batch_tokens, max_running, max_waiting)
        asked = RunSettings("", trace, rate, duration, seed, scale=scale, drain_s=drain)
        with progress_bar(duration) as show:
            report = run(config, asked, show)
        console = Console()
        if not console.is_terminal:
            console.width = TABLE_WIDTH
        console.print(table(report))
        if json_file is not None:
            report.save(json_file)
        if plot is not None:
            draw_run(plot / "timeline.png", report)
    raise typer.Exit(exits.OK if report.valid else exits.FAILED)


@simulate_app.command()
def goodput(
    policy: Policy = "adaptive",
    policy_option: PolicyOption = None,
    trace: Trace = "chat",
    start: Annotated[float, typer.Option(help="The first rate, in requests a second.")] = 10.0,
    slo: Annotated[str, typer.Option(help="tight, or loose (10/7.5 of it).")] = "tight",
    share: Annotated[float, typer.Option(help="Of the requests that must be inside their SLO.")] = 0.9,
    tolerance: Annotated[float, typer.Option(help="Ends when failed is at most this share above passed.")] = 0.02,
    repeats: Annotated[int, typer.Option(help="Runs at each rate, each with a seed of its own.")] = 3,
    duration: Annotated[float, typer.Option(help="Seconds in which the requests of a run arrive.")] = 60.0,
    seed: Annotated[int, typer.Option(help="Of the first run; each further run takes the next.")] = 0,
    lowest: Annotated[float, typer.Option(help="The lowest rate to try.")] = 0.01,
    highest: Annotated[float, typer.Option(help="The highest rate to try.")] = 10_000.0,
    most_runs: Annotated[int, typer.Option(help="The search gives up after this number of runs.")] = 120,
    profile: ProfileFile = SHIPPED,
    scale: Scale = 1.0,
    drain: Drain = DRAIN_S,
    pages: Pages = 0,
    max_batch_tokens: MaxBatchTokens = 8192,
    max_running: MaxRunning = 512,
    max_waiting: MaxWaiting = 512,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the result there, with every run.")] = None,
    plot: Annotated[Path | None, typer.Option(help="A folder for rates.png.")] = None,
) -> None:
    """Search for the highest rate at which the wanted share of requests is inside its SLO, as `semipd bench goodput`.

    Exit code: 0 found, 1 not found, or a run that is invalid, 2 wrong usage, 130 Ctrl-C.
    """
    from semipd.bench.commands.exits import errors_as_messages
    from semipd.bench.commands.goodput import is_loose, settings_of
    from semipd.bench.runs.goodput import search_goodput

    with errors_as_messages():
        loose = is_loose(slo)
        search = settings_of(start, share, tolerance, repeats, lowest, highest, seed, most_runs)
        config = opened(policy, policy_option, profile, pages, max_batch_tokens, max_running, max_waiting)
        base = RunSettings("", trace, start, duration, seed, scale=scale, drain_s=drain)
        runner = runner_of(config)
        found = search_goodput(base, search, loose=loose, json_file=json_file, plot=plot, runner=runner)
    if not found:
        raise typer.Exit(exits.FAILED)


def opened(
    policy: str,
    policy_option: list[str] | None,
    profile: str,
    pages: int,
    max_batch_tokens: int,
    max_running: int,
    max_waiting: int,
) -> SimConfig:
    """Raises InputError where an option or the profile can't be used."""
    from semipd.cli.serve import named_values
    from semipd.core.errors import ConfigError, InputError
    from semipd.profiles.profile import load_profile
    from semipd.sim.run import SimConfig

    try:
        chosen = named_values(policy_option or ())
    except ConfigError as error:
        raise InputError(str(error)) from None
    return SimConfig(policy, chosen, load_profile(profile), pages, max_batch_tokens, max_running, max_waiting)


def runner_of(config: SimConfig) -> Runner:
    from semipd.sim.run import simulate as run

    return lambda settings: run(config, settings)


@contextmanager
def progress_bar(duration_s: float) -> Iterator[Callable[[float], None] | None]:
    """Shows a bar on standard error; none if that is no terminal. The bar is told of simulated seconds."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    console = Console(stderr=True)
    if not console.is_terminal:
        yield None
        return
    columns = (BarColumn(), TextColumn("{task.completed:.0f} of {task.total:.0f} simulated seconds"))
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=duration_s)
        yield lambda now: bar.update(task, completed=min(now, duration_s))
