"""What a server tells the person who started it."""

from __future__ import annotations

from typing import Protocol


class ServeConsole(Protocol):
    def loading(self, done: int, total: int) -> None:
        """Bytes of weights in memory, of all. Called with done == total at the end."""

    def capturing(self, done: int, total: int) -> None:
        """Graphs captured, of all that both workers have; some may be left when the server is ready."""

    def note(self, text: str) -> None:
        """One line worth knowing."""

    def ready(self, address: str) -> None:
        """Requests are served at HOST:PORT."""
