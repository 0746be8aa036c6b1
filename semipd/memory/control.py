"""The control block: a few words of shared memory that say who computes on what. Workers read it before each pass.

It takes the place of messages. Each word has one writer: the coordinator writes split and mode; the worker of a phase
writes the phase's words, and the coordinator does when that worker dies; the phase that has the turn writes the turn. A
word of 8 aligned bytes is written and read whole on every machine that this runs on, and nothing here needs two words
to agree.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from semipd.core.partition import Phase
from semipd.memory.account import Role

CONTROL_BYTES = 4096
_SPLIT, _DECIDED, _TAKE_TURNS = 0, 1, 2
_BUSY = {Role.PREFILL: 8, Role.DECODE: 16}
_TURN = 24
_COMPUTING = {Role.PREFILL: 32, Role.DECODE: 40}
"""Each has a cache line of its own, because they are written at every step."""


@dataclass(frozen=True, slots=True)
class PublishedSplit:
    """Number of SMs that each phase may use while the other is busy. Prefill gets the last SMs, decode the first."""

    prefill: int
    decode: int
    change: int = 0
    """Number of changes so far, from 0."""

    def of(self, phase: Phase) -> int:
        """Returns a phase's number of SMs."""
        return self.prefill if phase is Phase.PREFILL else self.decode


class ControlBlock:
    """Reads and writes CONTROL_BYTES of shared memory, which are zero at first.

    Before the first `set_split` the split is (0, 0), which says nothing.
    """

    def __init__(self, buffer: memoryview) -> None:
        self._words = np.frombuffer(buffer, np.uint64, CONTROL_BYTES // 8)

    def set_split(self, split: PublishedSplit, decided_ns: int) -> None:
        """Sets the split. `decided_ns`: when it was decided, by `time.monotonic_ns`, which all processes of a machine
        share."""
        self._words[_DECIDED] = decided_ns
        self._words[_SPLIT] = split.prefill | split.decode << 16 | (split.change & 0xFFFFFFFF) << 32

    def split(self) -> PublishedSplit:
        word = int(self._words[_SPLIT])
        return PublishedSplit(word & 0xFFFF, word >> 16 & 0xFFFF, word >> 32)

    def decided_ns(self) -> int:
        return int(self._words[_DECIDED])

    def mark(self, role: Role, *, busy: bool) -> None:
        """Notes whether a phase is busy: it has work for the device. Either way it has no pass on the device at this
        moment."""
        self._words[_COMPUTING[role]] = False
        self._words[_BUSY[role]] = busy

    def busy(self, role: Role) -> bool:
        return bool(self._words[_BUSY[role]])

    def take_turns(self, tokens: int) -> None:
        """Sets the mode.

        `tokens` above 0: while both phases are busy they compute one at a time, each on the whole device. Prefill
        computes at least one batch, and further ones up to `tokens` prompt tokens together; then decode makes one
        step. 0: they compute side by side.
        """
        self._words[_TAKE_TURNS] = tokens

    def turn_tokens(self) -> int:
        return int(self._words[_TAKE_TURNS])

    def turns(self) -> bool:
        return self.turn_tokens() > 0

    def give_turn(self, role: Role) -> None:
        """Gives the turn to a phase. It decides nothing but speed: two phases that both believe to have it compute side
        by side."""
        self._words[_TURN] = int(role)

    def has_turn(self, role: Role) -> bool:
        return int(self._words[_TURN]) == int(role)

    def computes(self, role: Role, *, now: bool) -> None:
        """Notes whether a phase has a pass on the device. It matters where the phases take turns."""
        self._words[_COMPUTING[role]] = now

    def computing(self, role: Role) -> bool:
        return bool(self._words[_COMPUTING[role]])
