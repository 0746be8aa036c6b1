"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, TypeAlias

import typer

DEFAULT_HOST = "127.0.0.1"
DEFAULT_PORT = 50051

CONNECTION = "Server"
SAMPLING = "Sampling"

Target: TypeAlias = Annotated[
    str | None,
    typer.Option(help="The server's HOST:PORT. Instead of --host and --port.", rich_help_panel=CONNECTION),
]
Host: TypeAlias = Annotated[
    str | None, typer.Option(help=f"The server's host. [dim]default: {DEFAULT_HOST}[/]", rich_help_panel=CONNECTION)
]
Port: TypeAlias = Annotated[
    int | None,
    typer.Option(
        min=1, max=65535, help=f"The server's port. [dim]default: {DEFAULT_PORT}[/]", rich_help_panel=CONNECTION
    ),
]
ApiKey: TypeAlias = Annotated[
    str | None,
    typer.Option(
        envvar="SEMIPD_API_KEY",
        show_envvar=True,
        help="The key that the server asks for. Better in the environment, where other users can't see it.",
        rich_help_panel=CONNECTION,
    ),
]
Tls: TypeAlias = Annotated[
    bool, typer.Option("--tls", help="Speak TLS, trusting the usual authorities.", rich_help_panel=CONNECTION)
]
TlsCa: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        "--tls-ca",
        exists=True,
        dir_okay=False,
        help="Speak TLS, trusting the authority in this PEM file.",
        rich_help_panel=CONNECTION,
    ),
]
Timeout: TypeAlias = Annotated[
    float | None,
    typer.Option(
        min=0.001, help="Seconds after which an answer is given up. [dim]default: none[/]", rich_help_panel=CONNECTION
    ),
]

MaxTokens: TypeAlias = Annotated[
    int | None,
    typer.Option(min=1, help="Tokens of an answer, at most. [dim]default: what the context has room for[/]"),
]
Temperature: TypeAlias = Annotated[
    float | None,
    typer.Option(
        help="0: always the likeliest token; up to 2: ever more surprising. [dim]default: 1[/]",
        rich_help_panel=SAMPLING,
    ),
]
TopP: TypeAlias = Annotated[
    float | None,
    typer.Option(
        help="Draw among the likeliest tokens that together have this probability. [dim]default: 1, all[/]",
        rich_help_panel=SAMPLING,
    ),
]
TopK: TypeAlias = Annotated[
    int | None,
    typer.Option(help="Draw among so many of the likeliest tokens. [dim]default: all[/]", rich_help_panel=SAMPLING),
]
MinP: TypeAlias = Annotated[
    float | None,
    typer.Option(
        help="Leave out tokens below this fraction of the likeliest one's probability. [dim]default: 0[/]",
        rich_help_panel=SAMPLING,
    ),
]
RepetitionPenalty: TypeAlias = Annotated[
    float | None,
    typer.Option(
        help="Above 1: tokens that were there already become less likely. [dim]default: 1[/]", rich_help_panel=SAMPLING
    ),
]
Seed: TypeAlias = Annotated[
    int | None,
    typer.Option(
        min=0, help="The same seed gives the same answer. [dim]default: at random[/]", rich_help_panel=SAMPLING
    ),
]
Stop: TypeAlias = Annotated[
    list[str] | None, typer.Option(help="End before this text appears. May be given several times.")
]
System: TypeAlias = Annotated[str | None, typer.Option(help="Tells the model who it is, before your first message.")]
Model: TypeAlias = Annotated[str | None, typer.Option(help="The served model's name. [dim]default: the only one[/]")]
Stats: TypeAlias = Annotated[
    bool,
    typer.Option("--stats/--no-stats", help="After the answer, a line on standard error: speed, tokens, why it ended."),
]
