"""`semipd generate`: one answer, streamed to the terminal."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from semipd.cli import options as opt


def generate(
    prompt: Annotated[
        str, typer.Argument(help="What to ask, or the text to go on from. - reads it from standard input.")
    ],
    max_tokens: opt.MaxTokens = None,
    stop: opt.Stop = None,
    system: opt.System = None,
    model: opt.Model = None,
    chat: Annotated[
        bool | None,
        typer.Option(
            "--chat/--raw",
            help="Ask through the model's chat template, or go on from the bare text. "
            "[dim]default: --chat where the model has a template[/]",
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object at the end instead of streaming text.")
    ] = False,
    stats: opt.Stats = True,
    temperature: opt.Temperature = None,
    top_p: opt.TopP = None,
    top_k: opt.TopK = None,
    min_p: opt.MinP = None,
    repetition_penalty: opt.RepetitionPenalty = None,
    seed: opt.Seed = None,
    ignore_eos: Annotated[
        bool,
        typer.Option(
            "--ignore-eos", help="Go on past the model's own end, to --max-tokens.", rich_help_panel=opt.SAMPLING
        ),
    ] = False,
    target: opt.Target = None,
    host: opt.Host = None,
    port: opt.Port = None,
    api_key: opt.ApiKey = None,
    tls: opt.Tls = False,
    tls_ca: opt.TlsCa = None,
    timeout: opt.Timeout = None,
) -> None:
    """Ask a running server for one answer and stream it to the terminal. Ctrl-C cancels it.

    Exit code: 0 an answer, 1 an error, 2 wrong usage, 3 no server there, 130 Ctrl-C.
    """
    from semipd.cli.connection import address, connect, errors_as_messages
    from semipd.cli.once import answer

    if system is not None and chat is False:
        raise typer.BadParameter("--system is part of a chat: leave out --raw")
    server = address(target, host, port)
    with errors_as_messages(server), connect(server, api_key, tls, tls_ca, timeout) as client:
        answer(
            client,
            sys.stdin.read() if prompt == "-" else prompt,
            system=system,
            chat=True if system is not None else chat,
            as_json=as_json,
            stats=stats,
            options={
                "model": model,
                "max_tokens": max_tokens,
                "stop": stop or None,
                "temperature": temperature,
                "top_p": top_p,
                "top_k": top_k,
                "min_p": min_p,
                "repetition_penalty": repetition_penalty,
                "seed": seed,
                "ignore_eos": ignore_eos or None,
            },
        )
