"""`semipd bench interference`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from semipd.bench.commands.exits import FAILED, errors_as_messages


def interference(
    target: Annotated[str, typer.Option(help="grpc://HOST:PORT or openai+http://HOST:PORT/v1.")],
    decoding: Annotated[int, typer.Option(help="Sequences in the decode batch.")] = 64,
    context: Annotated[int, typer.Option(help="Prompt tokens of each of them.")] = 512,
    output_tokens: Annotated[int, typer.Option(help="Output of each, before another takes its place.")] = 1024,
    prompt_tokens: Annotated[int, typer.Option(help="Length of the long prompts.")] = 4000,
    prompt_output: Annotated[int, typer.Option(help="Output tokens of each long prompt.")] = 16,
    prompt_rate: Annotated[float, typer.Option(help="Long prompts a second.")] = 2.0,
    duration: Annotated[float, typer.Option(help="Seconds of each half, without and with prompts.")] = 30.0,
    settle: Annotated[float, typer.Option(help="Seconds for the batch to fill before the first half.")] = 5.0,
    seed: Annotated[int, typer.Option(help="Of the prompts.")] = 0,
    clients: Annotated[int | None, typer.Option(help="Load processes.")] = None,
    model: Annotated[str | None, typer.Option(help="Which of the target's models.")] = None,
    vocab_size: Annotated[int | None, typer.Option(help="Prompts are drawn below it.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the report there, with every gap.")] = None,
    plot: Annotated[Path | None, typer.Option(help="A folder for interference.png.")] = None,
) -> None:
    """Measure what long prompts do to a steady decode batch: the gaps between tokens without and with them.

    Exit code: 0 a valid run, 1 an invalid run or a target that fails, 2 wrong usage, 3 nobody answers, 130 Ctrl-C.
    """
    from semipd.bench.runs.interference import InterferenceSettings  # noqa: PLC0415 - `semipd --help` stays quick
    from semipd.bench.runs.interference_run import interference_once  # noqa: PLC0415

    with errors_as_messages():
        settings = InterferenceSettings(
            target=target,
            decoding=decoding,
            context=context,
            output_tokens=output_tokens,
            prompt_tokens=prompt_tokens,
            prompt_output=prompt_output,
            prompt_rate=prompt_rate,
            duration_s=duration,
            settle_s=settle,
            seed=seed,
            clients=clients,
            model=model,
            vocab_size=vocab_size,
        )
        valid = interference_once(settings, json_file, plot)
    if not valid:
        raise typer.Exit(FAILED)
