"""How the coordinator gets at the page account. Without torch: tensors are the workers' matter."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from semipd.memory.account import PageAccount
from semipd.memory.manifest import ACCOUNT, Manifest, receive


class AttachedAccount:
    """The account, mapped, until `close`."""

    def __init__(self, resident_socket: Path) -> None:
        """Raises HandOverFailed where the resident is not there."""
        self._stack = ExitStack()
        with ExitStack() as failing:
            failing.push(self._stack)
            manifest, arenas = receive(self._stack, resident_socket, only=[ACCOUNT])
            self.manifest: Manifest = manifest
            self.account = PageAccount.attach(arenas[ACCOUNT].buffer)
            failing.pop_all()

    def close(self) -> None:
        self._stack.close()
