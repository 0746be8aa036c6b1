"""Maps the page account and the control block into the coordinator.

It needs neither torch nor CUDA, since only the workers use tensors.
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from semipd.memory.account import PageAccount
from semipd.memory.control import ControlBlock
from semipd.memory.manifest import ACCOUNT, CONTROL, Manifest, receive, shared


class AttachedAccount:
    """The page account and the control block, which are mapped until `close`."""

    def __init__(self, resident_socket: Path) -> None:
        """Maps both. Raises HandOverFailed where the resident is not there."""
        self._stack = ExitStack()
        with ExitStack() as failing:
            failing.push(self._stack)
            manifest, arenas = receive(self._stack, resident_socket, only=[ACCOUNT, CONTROL])
            self.manifest: Manifest = manifest
            self.account = PageAccount.attach(shared(arenas, ACCOUNT).buffer)
            self.control = ControlBlock(shared(arenas, CONTROL).buffer)
            failing.pop_all()

    def close(self) -> None:
        self._stack.close()
