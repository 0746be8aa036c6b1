"""Looks over the running batch now and then, for it may have hundreds of sequences that change by one token a step."""

from __future__ import annotations

from collections.abc import Sequence

from semipd.core.snapshot import RunningSequence, Snapshot, WaitingSequence

LOOK_S = 0.05
"""Seconds between two looks, a few decode steps, unless the number of sequences changes by more than 1/MUCH before."""
MUCH = 8
"""The part of the running sequences, 1/8, by which their number must change for another look before LOOK_S is over."""


def joining(snapshot: Snapshot) -> list[WaitingSequence]:
    """Returns the sequences whose prompts end in batches that a worker has: they join the running batch next."""
    return [w for w in snapshot.waiting if w.in_flight_tokens and not w.remaining_tokens]


class RunningBatch:
    """Remembers the last look at the running sequences, which is at most LOOK_S old."""

    def __init__(self) -> None:
        self._looked: Sequence[RunningSequence] = ()
        self._looked_s = float("-inf")
        self._mean_context = 0.0

    def looked_over(self, snapshot: Snapshot) -> Sequence[RunningSequence]:
        """Returns `snapshot.running`, or what it was at the last look: then the object that was returned before."""
        running, now = snapshot.running, snapshot.now_s
        rows, before = len(running), len(self._looked)
        if not self._looked_s <= now < self._looked_s + LOOK_S or abs(rows - before) * MUCH > before:
            self._looked, self._looked_s = running, now
            self._mean_context = sum([r.context_tokens for r in running]) / rows if rows else 0.0
        return self._looked

    def context_tokens(self, snapshot: Snapshot) -> int:
        """Returns the context of all running sequences, in tokens: their number now times the mean of the last look."""
        self.looked_over(snapshot)
        return round(len(snapshot.running) * self._mean_context)
