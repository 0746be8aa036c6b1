"""`semipd top`."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from semipd.bench.commands.exits import errors_as_messages


def top(
    target: Annotated[str, typer.Option(help="The server's HOST:PORT.")] = "127.0.0.1:50051",
    interval: Annotated[float, typer.Option(help="Seconds between reports.", min=0.05, max=60)] = 1.0,
    once: Annotated[bool, typer.Option("--once", help="One frame, and out.")] = False,
) -> None:
    """Watch a running server. Ctrl-C leaves. Without a terminal: one line an interval."""
    # gRPC writes of every server that goes away, into the middle of the picture; it reads this when it is imported
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    from semipd.bench.commands.top_console import show  # noqa: PLC0415 - `semipd --help` stays quick

    with errors_as_messages():
        try:
            show(target, interval, once=once)
        except (KeyboardInterrupt, BrokenPipeError):  # how one leaves it
            raise typer.Exit(0) from None
