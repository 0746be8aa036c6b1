"""`semipd top`."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from typing import Annotated

import typer
from rich.console import Console
from rich.live import Live
from rich.text import Text

from semipd.bench.errors import BenchError
from semipd.bench.gpu import GpuMeter
from semipd.bench.top import History, line, view
from semipd.bench.watch import Gone, Watch
from semipd.v1 import admin_pb2 as pb


def top(
    target: Annotated[str, typer.Option(help="The server's HOST:PORT.")] = "127.0.0.1:50051",
    interval: Annotated[float, typer.Option(help="Seconds between reports.", min=0.05, max=60)] = 1.0,
    once: Annotated[bool, typer.Option("--once", help="One frame, and out.")] = False,
) -> None:
    """A live view of a running server. Ctrl-C leaves. Without a terminal: one line an interval."""
    console = Console()
    try:
        if once:
            show_once(console, target)
        elif console.is_terminal:
            show_live(console, target, interval)
        else:
            print_lines(console, target, interval)
    except BenchError as error:
        print(error, file=sys.stderr)
        raise typer.Exit(error.exit_code) from None
    except (KeyboardInterrupt, BrokenPipeError):
        raise typer.Exit(0) from None


def show_once(console: Console, target: str) -> None:
    with Watch(target) as watch, GpuMeter() as meter:
        seen = watch.now()
        history = History()
        history.add(seen.load, meter.read())
        console.print(view(seen.info, seen.load, history))


def show_live(console: Console, target: str, interval_s: float) -> None:
    """Until KeyboardInterrupt. The terminal is as it was before, with the last frame in it."""
    history = History()
    info, load = pb.GetServerInfoResponse(), pb.Load()
    with ExitStack() as open_now:
        watch = open_now.enter_context(Watch(target))
        meter = open_now.enter_context(GpuMeter())
        frames = watch.frames(interval_s)
        first = next(frames)  # before the screen is taken: an unreachable server is a sentence, not a frame
        live = open_now.enter_context(Live(Text(), console=console, auto_refresh=False, vertical_overflow="crop"))
        frame = first
        while True:
            if isinstance(frame, Gone):
                history.gone = frame.reason
            else:
                info, load = frame.info, frame.load
                history.add(load, meter.read())
            live.update(view(info, load, history), refresh=True)
            frame = next(frames)


def print_lines(console: Console, target: str, interval_s: float) -> None:
    with Watch(target) as watch:
        for frame in watch.frames(interval_s):
            said = f"no answer: {frame.reason}" if isinstance(frame, Gone) else line(frame.load)
            console.print(said, soft_wrap=True, markup=False, highlight=False)
