"""A few words of shared memory that say, without a message, who computes on what: read before each step.

One word has one writer (split and mode: the coordinator; words of a phase: the worker in that office, and the
coordinator on its death; the turn: whoever has it). A word of 8 aligned bytes is written and read whole on every
machine that this runs on, and nothing here needs two words to agree.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from semipd.memory.account import Role

CONTROL_BYTES = 4096
_SPLIT, _DECIDED, _TAKE_TURNS = 0, 1, 2
_BUSY = {Role.PREFILL: 8, Role.DECODE: 16}
_TURN = 24
_COMPUTING = {Role.PREFILL: 32, Role.DECODE: 40}
"""A cache line each: they are written at every step."""


@dataclass(frozen=True, slots=True)
class Split:
    """Multiprocessors that each phase may use while the other is busy; prefill gets the last ones, decode the first."""

    prefill: int
    decode: int
    change: int = 0
    """Counts the changes, from 0."""

    def of(self, role: Role) -> int:
        return self.prefill if role is Role.PREFILL else self.decode


class ControlBlock:
    """Over CONTROL_BYTES of zeroed shared memory. Before the first `set_split` the split is (0, 0): nothing is said."""

    def __init__(self, buffer: memoryview) -> None:
        self._words = np.frombuffer(buffer, np.uint64, CONTROL_BYTES // 8)

    def set_split(self, split: Split, decided_ns: int) -> None:
        """`decided_ns`: of `time.monotonic_ns`, which all processes of a machine share."""
        self._words[_DECIDED] = decided_ns
        self._words[_SPLIT] = split.prefill | split.decode << 16 | (split.change & 0xFFFFFFFF) << 32

    def split(self) -> Split:
        word = int(self._words[_SPLIT])
        return Split(word & 0xFFFF, word >> 16 & 0xFFFF, word >> 32)

    def decided_ns(self) -> int:
        return int(self._words[_DECIDED])

    def mark(self, role: Role, *, busy: bool) -> None:
        """Busy: it has work on the device, or is about to. Either way it computes nothing yet, or nothing any more."""
        self._words[_COMPUTING[role]] = False
        self._words[_BUSY[role]] = busy

    def busy(self, role: Role) -> bool:
        return bool(self._words[_BUSY[role]])

    def take_turns(self, tokens: int) -> None:
        """The phases compute one at a time, each on the whole device, while both are busy: prefill batches of so many
        prompt tokens together, at least one batch, then one decode step. 0: they compute side by side."""
        self._words[_TAKE_TURNS] = tokens

    def turn_tokens(self) -> int:
        return int(self._words[_TAKE_TURNS])

    def turns(self) -> bool:
        return self.turn_tokens() > 0

    def give_turn(self, role: Role) -> None:
        """What decides nothing but speed: two who both believe that it is theirs compute side by side."""
        self._words[_TURN] = int(role)

    def has_turn(self, role: Role) -> bool:
        return int(self._words[_TURN]) == int(role)

    def computes(self, role: Role, *, now: bool) -> None:
        """Where the phases take turns: it has a pass on the device, or has not any more."""
        self._words[_COMPUTING[role]] = now

    def computing(self, role: Role) -> bool:
        return bool(self._words[_COMPUTING[role]])
