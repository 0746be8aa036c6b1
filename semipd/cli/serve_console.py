"""Tells the person who started a server how it goes: a bar where there is a terminal, lines where there is none."""

from __future__ import annotations

import json
import os
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TransferSpeedColumn
from rich.text import Text

STEP = 0.25
"""Where there is no terminal, one line each time that so much more of the weights is loaded."""


class RichServeConsole:
    """A ServeConsole. `announce_fd`: gets one line of JSON when requests are served, and is closed then."""

    def __init__(self, console: Console, announce_fd: int | None = None) -> None:
        self._console = console
        self._announce_fd = announce_fd
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        self._told = 0.0

    def loading(self, done: int, total: int) -> None:
        if self._console.is_terminal:
            self._move_bar(done, total)
        else:
            share = done / total if total else 1.0
            if share >= self._told + STEP or (share >= 1.0 > self._told):
                self._told = share
                self._say(f"loading weights: {share:.0%} of {total / 1e6:.1f} MB")
        if done >= total:
            self._told = 0.0  # a server whose resident is lost loads again

    def note(self, text: str) -> None:
        self._say(text)

    def ready(self, address: str) -> None:
        self._end_bar()
        self._say(f"ready: gRPC at {address}", style="bold green")
        self._say(f'try:   semipd generate --target {address} "What is prefill?"', style="dim")
        self._say("stop:  Ctrl-C lets running requests finish; a second one ends them", style="dim")
        self._announce({"address": address})

    def _say(self, text: str, style: str = "") -> None:
        self._console.print(Text(text, style=style))

    def _move_bar(self, done: int, total: int) -> None:
        if self._progress is None:
            self._progress = Progress(
                TextColumn("loading weights"),
                BarColumn(),
                DownloadColumn(),
                TransferSpeedColumn(),
                console=self._console,
                transient=True,
            )
            self._progress.start()
            self._task = self._progress.add_task("", total=total)
        if self._task is not None:
            self._progress.update(self._task, completed=done, total=total)
        if done >= total:
            self._end_bar()

    def _end_bar(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

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
        self._end_bar()
