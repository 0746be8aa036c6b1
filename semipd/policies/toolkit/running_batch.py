"""Samples of the running batch: it may be hundreds of sequences, and each changes by one token a step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Generic, TypeVar

from semipd.core.snapshot import RunningSequence, Snapshot, WaitingSequence


def joining(snapshot: Snapshot) -> list[WaitingSequence]:
    """Returns the sequences whose prompts end in the batches that a worker has: they join the running batch next."""
    return [w for w in snapshot.waiting if w.in_flight_tokens and not w.remaining_tokens]


class RunningSample:
    """The running batch as it was at one moment. Each value that follows from it is computed when first asked for."""

    def __init__(self, snapshot: Snapshot) -> None:
        self.at_s = snapshot.now_s
        """The moment at which it was taken, on the snapshot's clock."""
        self.running: Sequence[RunningSequence] = snapshot.running

    @cached_property
    def mean_context_tokens(self) -> float:
        """Mean tokens that a sequence attends to; 0 where none runs."""
        running = self.running
        return sum([r.context_tokens for r in running]) / len(running) if running else 0.0


@dataclass(frozen=True, slots=True)
class SamplingTuning:
    """The constants that say how often the running batch is sampled."""

    period_s: float = 0.05
    """Seconds for which a sample holds: a few decode steps. Going through hundreds of sequences for each plan was most
    of what `adaptive` computed, and attainment is the same (simulated, ten seeds of 120 s)."""
    changed_part: float = 1 / 8
    """Part of the sampled number of sequences; where more have joined or left, a new sample is taken at once."""


SAMPLING = SamplingTuning()

Sample_co = TypeVar("Sample_co", bound=RunningSample, covariant=True)


class RunningSampler(Generic[Sample_co]):
    """Takes samples of the running batch and keeps the last one, which is at most `period_s` old."""

    def __init__(self, take: Callable[[Snapshot], Sample_co], tuning: SamplingTuning = SAMPLING) -> None:
        """`take` makes a sample: `RunningSample` or a subclass that derives more from it."""
        self._take = take
        self._tuning = tuning
        self._last: Sample_co | None = None

    def sample(self, snapshot: Snapshot) -> Sample_co:
        """Returns the last sample, or a new one where it no longer holds: it is old, much has changed, or the clock has
        begun anew."""
        last, tuning = self._last, self._tuning
        if last is not None and last.at_s <= snapshot.now_s < last.at_s + tuning.period_s:
            sampled = len(last.running)
            if abs(len(snapshot.running) - sampled) <= sampled * tuning.changed_part:
                return last
        self._last = last = self._take(snapshot)
        return last

    def context_tokens(self, snapshot: Snapshot) -> int:
        """Returns the tokens that all running sequences attend to: as many sequences as run now, with the mean context
        of the last sample."""
        return round(len(snapshot.running) * self.sample(snapshot).mean_context_tokens)
