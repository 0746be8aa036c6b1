"""The interface to what a server shows the person who started it."""

from __future__ import annotations

from typing import Protocol


class ServeConsole(Protocol):
    """Shows the progress of a start, and lines worth knowing."""

    def loading(self, done: int, total: int) -> None:
        """Shows how many bytes of the weights are in memory. Called with done == total at the end."""

    def capturing(self, done: int, total: int) -> None:
        """Shows how many CUDA graphs of both workers are captured. Some may be left when the server is ready."""

    def note(self, text: str) -> None:
        """Shows one line worth knowing."""

    def ready(self, address: str) -> None:
        """Says that requests are served at `address`, which is HOST:PORT."""
