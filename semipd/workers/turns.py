"""One phase's side of taking turns on a GPU: who may launch a pass, by words of the control block alone."""

from __future__ import annotations

import time
from collections.abc import Callable

from semipd.memory.account import Role
from semipd.memory.control import ControlBlock
from semipd.workers.backend import Pulse

OTHER = {Role.PREFILL: Role.DECODE, Role.DECODE: Role.PREFILL}

TURN_LIMIT_S = 1.0
"""Longer than any turn that a policy would plan."""


class Turns:
    """While both phases are busy, prefill computes batches of so many prompt tokens as the control block says, then
    decode one step, each on the whole device.

    Whoever is alone computes when it likes. So who becomes busy meanwhile waits for the other's pass to end: side by
    side both would take about as long as one after the other, and neither as long as anybody expects.
    """

    def __init__(self, control: ControlBlock, role: Role, now: Callable[[], float] = time.monotonic) -> None:
        self._control, self._role, self._now = control, role, now
        self._other = OTHER[role]
        self._busy: bool | None = None
        self._tokens = 0
        """Of prompts, computed in this turn."""

    def busy(self, work: bool) -> None:
        if work != self._busy:
            self._busy = work
            if work and self._role is Role.PREFILL:
                self._control.give_turn(self._role)  # decode has had the device to itself meanwhile
            self._control.mark(self._role, busy=work)

    def alternate(self) -> bool:
        """Whether they do now: the other one is busy, too."""
        return self._control.turns() and self._control.busy(self._other)

    def mine(self) -> bool:
        """Whether a pass may be launched now; always where the phases don't alternate."""
        return not self.alternate() or (self._control.has_turn(self._role) and not self._control.computing(self._other))

    def wait(self, glance: Pulse, rest: Callable[[], None]) -> None:
        """Until it is this one's turn, or for TURN_LIMIT_S. `glance` is called again and again, `rest` between."""
        until = self._now() + TURN_LIMIT_S
        while not self.mine():
            if self._now() > until:  # who has it is stopped, or gone
                self._control.give_turn(self._role)
                return
            glance()
            rest()

    def begin(self) -> None:
        """A pass is about to be launched."""
        self._control.computes(self._role, now=self._control.turns())

    def end(self, computed: int, following: int) -> bool:
        """As `Backend.end_turn`."""
        self._tokens += computed
        if following and self._tokens + following <= self._control.turn_tokens():
            return True
        self._tokens = 0
        self._control.computes(self._role, now=False)
        self._control.give_turn(self._other)
        return False
