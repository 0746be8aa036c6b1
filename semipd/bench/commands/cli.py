"""`semipd bench`: its commands. What they import is imported when they run, so that `semipd --help` stays quick."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from semipd.bench.commands.compare import compare, plot
from semipd.bench.commands.exits import errors_as_messages
from semipd.bench.commands.goodput import goodput
from semipd.bench.commands.interference import interference
from semipd.bench.errors import InputError
from semipd.bench.settings import DRAIN_S, RunSettings

bench_app = typer.Typer(
    name="bench",
    help="Measure a server: semipd's, or any that speaks OpenAI's completions protocol.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)

bench_app.command()(goodput)
bench_app.command()(compare)
bench_app.command()(plot)
bench_app.command()(interference)


@bench_app.command("traces")
def traces(
    out: Annotated[Path, typer.Option(help="The folder to write to; made if it is not there.")] = Path(),
) -> None:
    """Write the traces that ship: chat.jsonl, mixed.jsonl and long.jsonl. The same bytes on any machine."""
    from semipd.bench.traces import TRACES, make_trace, write_trace  # noqa: PLC0415

    with errors_as_messages():
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{out}: can't be made: {error.strerror}") from error
        for name in sorted(TRACES):
            trace = make_trace(name)
            path = out / f"{name}.jsonl"
            write_trace(trace, path)
            prompt, output = (sum(getattr(e, f) for e in trace) / len(trace) for f in ("prompt_len", "output_len"))
            print(f"{path}: {len(trace)} requests, on average {prompt:.0f} + {output:.0f} tokens")


@bench_app.command("run")
def run_command(
    target: Annotated[str, typer.Option(help="grpc://HOST:PORT, or openai+http://HOST:PORT/v1 with --model.")],
    trace: Annotated[str, typer.Option(help="chat, mixed, long, or a file.")],
    rate: Annotated[float, typer.Option(help="Requests a second, on average (Poisson arrivals).")],
    duration: Annotated[float, typer.Option(help="Seconds in which requests arrive.")],
    seed: Annotated[int, typer.Option(help="Of the arrivals and the prompts.")] = 0,
    clients: Annotated[
        int | None, typer.Option(help="Load processes. [dim]default: a quarter of the cores, 8 at most[/]")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Which of the target's models.")] = None,
    vocab_size: Annotated[
        int | None,
        typer.Option(help="Prompts are random token ids below it. [dim]default: the model's, else 32000[/]", min=1),
    ] = None,
    scale: Annotated[float, typer.Option(help="Multiply all lengths by it, for a model with a short context.")] = 1.0,
    drain: Annotated[float, typer.Option(help="Seconds to wait for answers after the last arrival.", min=0)] = DRAIN_S,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the report there, with each request.")] = None,
    gaps: Annotated[bool, typer.Option("--gaps", help="Also write every gap between tokens into the JSON.")] = False,
    plot_folder: Annotated[Path | None, typer.Option("--plot", help="A folder for timeline.png.")] = None,
) -> None:
    """Send a trace to a server, open loop, and score what comes back.

    Exit code: 0 a valid run, 1 an invalid run or a target that fails, 2 wrong usage, 3 nobody answers, 130 Ctrl-C.
    """
    from semipd.bench.commands.once import run_once  # noqa: PLC0415

    settings = RunSettings(target, trace, rate, duration, seed, clients, model, vocab_size, scale, drain)
    with errors_as_messages():
        valid = run_once(settings, json_file, plot_folder, gaps=gaps)
    raise typer.Exit(0 if valid else 1)
