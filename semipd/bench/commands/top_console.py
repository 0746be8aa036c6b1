"""Shows what `semipd top` sees: live, once, or as a line an interval."""

from __future__ import annotations

from contextlib import ExitStack

from rich.console import Console
from rich.live import Live
from rich.text import Text

from semipd.bench.drawing.top_frame import LoadHistory, line, view
from semipd.bench.gpu import GpuMeter
from semipd.bench.targets.watch import LoadWatch, ServerGone
from semipd.v1 import admin_pb2 as pb


def show(target: str, interval_s: float, *, once: bool) -> None:
    """Shows frames until Ctrl-C, or one frame. Raises Unreachable where no server answers at first."""
    console = Console()
    if once:
        show_once(console, target)
    elif console.is_terminal:
        show_live(console, target, interval_s)
    else:
        print_lines(console, target, interval_s)


def show_once(console: Console, target: str) -> None:
    with LoadWatch(target) as watch, GpuMeter() as meter:
        seen = watch.now()
        history = LoadHistory()
        history.add(seen.load, meter.read())
        console.print(view(seen.info, seen.load, history))


def show_live(console: Console, target: str, interval_s: float) -> None:
    """Shows live frames until KeyboardInterrupt. Afterwards the terminal is as before, with the last frame in it."""
    history = LoadHistory()
    info, load = pb.GetServerInfoResponse(), pb.Load()
    with ExitStack() as open_now:
        watch = open_now.enter_context(LoadWatch(target))
        meter = open_now.enter_context(GpuMeter())
        frames = watch.frames(interval_s)
        first = next(frames)  # before the screen is taken: an unreachable server is a sentence, not a frame
        live = open_now.enter_context(Live(Text(), console=console, auto_refresh=False, vertical_overflow="crop"))
        frame = first
        while True:
            if isinstance(frame, ServerGone):
                history.gone = frame.reason
            else:
                info, load = frame.info, frame.load
                history.add(load, meter.read())
            live.update(view(info, load, history), refresh=True)
            frame = next(frames)


def print_lines(console: Console, target: str, interval_s: float) -> None:
    with LoadWatch(target) as watch:
        for frame in watch.frames(interval_s):
            said = f"no answer: {frame.reason}" if isinstance(frame, ServerGone) else line(frame.load)
            console.print(said, soft_wrap=True, markup=False, highlight=False)
