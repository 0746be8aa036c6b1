"""Consoles: messages for people go to standard error, answers to standard output, so that a pipe gets answers alone."""

from __future__ import annotations

import sys
import unicodedata
from typing import TextIO

from rich.console import Console
from rich.text import Text


def messages() -> Console:
    """Returns the console for messages about the work."""
    return Console(stderr=True, highlight=False, soft_wrap=True)


def complain(text: str) -> None:
    messages().print(Text(text, style="red"))


def remark(text: str) -> None:
    messages().print(Text(text, style="dim"))


class Voice:
    """Writes an answer as it comes; to a terminal without the characters that would steer it, which a model may say."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stdout
        self._guarded = self._stream.isatty()
        self._at_line_start = True

    def say(self, text: str) -> None:
        if self._guarded:
            text = harmless(text)
        if text:
            self._stream.write(text)
            self._stream.flush()
            self._at_line_start = text.endswith("\n")

    def end_line(self) -> None:
        if not self._at_line_start:
            self._stream.write("\n")
            self._stream.flush()
            self._at_line_start = True


def harmless(text: str) -> str:
    return "".join(c for c in text if c in "\n\t" or unicodedata.category(c) != "Cc")
