"""One phase's side of taking turns on a GPU. Words of the control block alone say who may launch a pass."""

from __future__ import annotations

import time
from collections.abc import Callable

from semipd.engine.cuda.device_wait import GLANCE_S
from semipd.engine.pulse import Pulse
from semipd.memory.account import Role
from semipd.memory.control import ControlBlock

OTHER = {Role.PREFILL: Role.DECODE, Role.DECODE: Role.PREFILL}

TURN_LIMIT_S = 1.0
"""Longest wait for a turn, in seconds. It is longer than any turn that a policy would plan."""


class ControlBlockTurns:
    """A `TurnTaking` over the control block.

    While both phases are busy, prefill computes batches up to the prompt tokens that the control block says, then
    decode one step, each on the whole device.

    A phase that is alone computes when it likes. So a phase that becomes busy meanwhile waits for the other's pass to
    end: side by side, both passes would take about as long as one after the other, and neither would take as long as
    anybody expects.
    """

    def __init__(
        self,
        control: ControlBlock,
        role: Role,
        now: Callable[[], float] = time.monotonic,
        rest: Callable[[], None] = lambda: time.sleep(GLANCE_S),
    ) -> None:
        """`now` and `rest`: the clock, in seconds, and what passes the time between two looks at the control block."""
        self._control, self._role, self._now, self._rest = control, role, now, rest
        self._other = OTHER[role]
        self._busy: bool | None = None
        self._tokens = 0
        """Prompt tokens that were computed in this turn."""

    def busy(self, work: bool) -> None:
        if work != self._busy:
            self._busy = work
            if work and self._role is Role.PREFILL:
                self._control.give_turn(self._role)  # decode has had the device to itself meanwhile
            self._control.mark(self._role, busy=work)

    def enabled(self) -> bool:
        return self._control.turns()

    def alternating(self) -> bool:
        return self._control.turns() and self._control.busy(self._other)

    def mine(self) -> bool:
        if not self.alternating():
            return True
        return self._control.has_turn(self._role) and not self._control.computing(self._other)

    def wait(self, pulse: Pulse) -> None:
        """Waits for the turn, for TURN_LIMIT_S at most; after that it takes the turn."""
        until = self._now() + TURN_LIMIT_S
        while not self.mine():
            if self._now() > until:  # the worker that has the turn is stopped, or gone
                self._control.give_turn(self._role)
                return
            pulse.report()
            self._rest()

    def begin(self) -> None:
        """Notes that a pass is about to be launched."""
        self._control.computes(self._role, now=self._control.turns())

    def end(self, *, computed: int = 0, following: int = 0) -> bool:
        self._tokens += computed
        if following and self._tokens + following <= self._control.turn_tokens():
            return True
        self._tokens = 0
        self._control.computes(self._role, now=False)
        self._control.give_turn(self._other)
        return False
