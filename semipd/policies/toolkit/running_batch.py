"""The running batch, looked over now and then: it may be hundreds of sequences, and changes by a token each a step."""

from __future__ import annotations

from collections.abc import Sequence

from semipd.core.snapshot import RunningSequence, Snapshot, WaitingSequence

LOOK_S = 0.05
"""It is looked over at most so often, a few decode steps, unless the number of its sequences changes by more than
1/MUCH meanwhile."""
MUCH = 8


def joining(snapshot: Snapshot) -> list[WaitingSequence]:
    """Those whose prompts end in the batches that are with a worker: they will be in the running batch next."""
    return [w for w in snapshot.waiting if w.in_flight_tokens and not w.remaining_tokens]


class RunningBatch:
    """Remembers the last look. What it says is at most LOOK_S old."""

    def __init__(self) -> None:
        self._looked: Sequence[RunningSequence] = ()
        self._looked_s = float("-inf")
        self._mean_context = 0.0

    def looked_over(self, snapshot: Snapshot) -> Sequence[RunningSequence]:
        """`snapshot.running`, or what it was at the last look: then the same object as was returned before."""
        running, now = snapshot.running, snapshot.now_s
        rows, before = len(running), len(self._looked)
        if not self._looked_s <= now < self._looked_s + LOOK_S or abs(rows - before) * MUCH > before:
            self._looked, self._looked_s = running, now
            self._mean_context = sum([r.context_tokens for r in running]) / rows if rows else 0.0
        return self._looked

    def context_tokens(self, snapshot: Snapshot) -> int:
        """Of all that run: as many as run now, as long as they were at the last look."""
        self.looked_over(snapshot)
        return round(len(snapshot.running) * self._mean_context)
