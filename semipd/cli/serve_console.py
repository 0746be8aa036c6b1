"""Tells the person who started a server how it goes: bars where there is a terminal, lines where there is none."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TaskID,
    TextColumn,
    TransferSpeedColumn,
)
from rich.text import Text

STEP = 0.25
"""Fraction of the work between two lines, where there is no terminal."""


class ProgressLine:
    """Shows the progress of one thing: a bar that goes away at its end, or a few lines."""

    def __init__(
        self,
        console: Console,
        title: str,
        columns: Callable[[], tuple[ProgressColumn, ...]],
        size: Callable[[int], str],
    ) -> None:
        """`columns`: behind the bar; `size`: the total in words."""
        self._console = console
        self._title = title
        self._columns = columns
        self._size = size
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        self._told = 0.0

    def move(self, done: int, total: int) -> None:
        if self._console.is_terminal:
            self._move_bar(done, total)
        else:
            share = done / total if total else 1.0
            if share >= self._told + STEP or (share >= 1.0 > self._told):
                self._told = share
                self._console.print(Text(f"{self._title}: {share:.0%} of {self._size(total)}"))

    def end(self) -> None:
        """Ends the bar. Progress that is reported afterwards begins a new one."""
        self._told = 0.0
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def _move_bar(self, done: int, total: int) -> None:
        if self._progress is None:
            self._progress = Progress(
                TextColumn(self._title), BarColumn(), *self._columns(), console=self._console, transient=True
            )
            self._progress.start()
            self._task = self._progress.add_task("", total=total)
        if self._task is not None:
            self._progress.update(self._task, completed=done, total=total)


class RichServeConsole:
    """A ServeConsole. `announce_fd`: gets one line of JSON when requests are served, and is closed then."""

    def __init__(self, console: Console, announce_fd: int | None = None) -> None:
        self._console = console
        self._announce_fd = announce_fd
        self._loading = ProgressLine(
            console,
            "loading weights",
            lambda: (DownloadColumn(), TransferSpeedColumn()),
            lambda total: f"{total / 1e6:.1f} MB",
        )
        self._capturing = ProgressLine(console, "capturing graphs", lambda: (MofNCompleteColumn(),), str)

    def loading(self, done: int, total: int) -> None:
        self._loading.move(done, total)
        if done >= total:
            self._loading.end()  # a server whose resident is lost loads again

    def capturing(self, done: int, total: int) -> None:
        # Not at its end when done is total: the other worker may not have said yet how many it has.
        self._loading.end()
        self._capturing.move(done, total)

    def note(self, text: str) -> None:
        self._say(text)

    def ready(self, address: str) -> None:
        self._end_bars()
        self._say(f"ready: gRPC at {address}", style="bold green")
        self._say(f'try:   semipd generate --target {address} "What is prefill?"', style="dim")
        self._say("stop:  Ctrl-C lets running requests finish; a second one ends them", style="dim")
        self._announce({"address": address})

    def _say(self, text: str, style: str = "") -> None:
        self._console.print(Text(text, style=style))

    def _end_bars(self) -> None:
        self._loading.end()
        self._capturing.end()

    def _announce(self, what: dict[str, str]) -> None:
        if self._announce_fd is not None:
            with os.fdopen(self._announce_fd, "w") as pipe:
                pipe.write(json.dumps(what) + "\n")
            self._announce_fd = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end_bars()
