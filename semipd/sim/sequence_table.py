"""The sequences that a simulated server has accepted, by stage, and what a policy is shown of them.

The two tuples of a snapshot are kept until something in them changes.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable

from semipd.coordinator.requests import Stage
from semipd.core.snapshot import SequenceId, WaitingSequence
from semipd.sim.request import NEVER, RunningView, SimSequence


class SequenceTable:
    """The sequences that wait (or are prefilled), and those that run (ready for the decode batch, or in it)."""

    def __init__(self) -> None:
        self.waiting: dict[SequenceId, SimSequence] = {}
        """Sequences whose next token needs a prefill pass, by arrival."""
        self.idle = 0
        """Number of those in `waiting` that have nothing with a worker."""
        self.ready: list[SimSequence] = []
        """Sequences that are ready for the decode batch."""
        self._numbers: list[SequenceId] = []
        self._views: list[RunningView] = []
        self._seen_waiting: tuple[WaitingSequence, ...] | None = ()
        self._seen_views: tuple[RunningView, ...] | None = ()

    def __len__(self) -> int:
        """Returns how many sequences are alive."""
        return len(self.waiting) + len(self._numbers)

    # --- what is shown ----------------------------------------------------------------------------------------------

    def shown_waiting(self) -> tuple[WaitingSequence, ...]:
        """Returns what policies see of the sequences that wait, by arrival."""
        if self._seen_waiting is None:
            self._seen_waiting = tuple([s.seen or s.as_waiting() for s in self.waiting.values()])
        return self._seen_waiting

    def views(self) -> tuple[RunningView, ...]:
        """Returns the views of the sequences that run, by arrival."""
        if self._seen_views is None:
            self._seen_views = tuple(self._views)
        return self._seen_views

    def running(self, number: SequenceId) -> SimSequence:
        """Returns a sequence that runs, by its number."""
        return self._views[bisect_left(self._numbers, number)].source

    # --- what changes -----------------------------------------------------------------------------------------------

    def changed(self) -> None:
        """Forgets what was shown of waiting sequences. To be called after one has changed in another way."""
        self._seen_waiting = None

    def add(self, sequence: SimSequence) -> None:
        """Takes a sequence that has just been accepted."""
        sequence.stage = Stage.WAITING
        self.waiting[sequence.number] = sequence
        self.idle += 1
        self._seen_waiting = None

    def give_out(self, sequences: Iterable[SimSequence]) -> None:
        """Marks waiting sequences of which a chunk is with a worker from now on."""
        for sequence in sequences:
            sequence.stage = Stage.PREFILLING
            self.idle -= 1
        self._seen_waiting = None

    def back(self, sequence: SimSequence) -> None:
        """Marks a sequence whose chunk was answered for, and whose prompt has more of them."""
        sequence.stage = Stage.WAITING
        self.idle += 1
        self._seen_waiting = None

    def wait_again(self, sequence: SimSequence) -> None:
        """Puts a sequence that ran back among those that wait, at its place by arrival."""
        sequence.stage = Stage.WAITING
        self.waiting[sequence.number] = sequence
        self.waiting = dict(sorted(self.waiting.items()))
        self.idle += 1
        self._seen_waiting = None

    def make_ready(self, sequence: SimSequence) -> None:
        """Moves a sequence whose prompt is computed to those that run."""
        sequence.stage, sequence.joined = Stage.READY, NEVER
        self.ready.append(sequence)
        at = bisect_left(self._numbers, sequence.number)
        self._numbers.insert(at, sequence.number)
        self._views.insert(at, RunningView(sequence))
        self._seen_views = None

    def show_anew(self, sequence: SimSequence) -> None:
        """Renews the view of a running sequence, which has joined the decode batch or is held back."""
        self._views[bisect_left(self._numbers, sequence.number)] = RunningView(sequence)
        self._seen_views = None

    def stop_running(self, sequence: SimSequence) -> None:
        """Takes a sequence out of those that run."""
        if sequence.stage is Stage.READY:
            self.ready.remove(sequence)
        at = bisect_left(self._numbers, sequence.number)
        del self._numbers[at]
        del self._views[at]
        self._seen_views = None

    def stop_waiting(self, sequence: SimSequence) -> None:
        """Takes a sequence out of those that wait."""
        if sequence.stage is Stage.WAITING:
            self.idle -= 1
        del self.waiting[sequence.number]
        self._seen_waiting = None
