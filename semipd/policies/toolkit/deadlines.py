"""Orders prompts by their deadlines: as many in time as possible, short ones first among those, and nobody starves.

`due_s` says when a sequence's next token is *due*; it follows from the client's SLO. `start_by_s` says when its prefill
must *start*; it follows from how long the prefill takes. Two textbook rules for one machine then make the order:

* Moore and Hodgson (1968): go through the sequences by due time. Whenever one would be late, give up the sequence with
  the most work so far. No other choice leaves fewer sequences late. So a prompt that can't be in time even alone never
  delays one that can, and a long prompt is given up where it would make several short ones late.
* Smith (1956): the sequences that are left can all be in time. Of those that may stand last without being late, the one
  with the most work stands last, and so on towards the front. No other order in which all are in time has a smaller
  mean wait: a short prompt waits for a long one only when the long one has no slack left to give.

The *overdue* ones, which were given up, follow by arrival. A stream of others must not keep them waiting for ever, so
one token in `DeadlineTuning.overdue_part` goes to them first (`Ageing`). An overdue sequence waits at most while
`overdue_part` times its own tokens, and those of the overdue ones that came before it, are computed. A higher priority
is always before a lower one, overdue or not.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

from semipd.core.plan import Chunk
from semipd.core.snapshot import SequenceId, WaitingSequence


@dataclass(frozen=True, slots=True)
class DeadlineTuning:
    """The constants of an order by deadlines."""

    assumed_ttft_s: float = 1.0
    """TTFT, in seconds, of a request that names none; the stretch below is added. With it such a request has its place
    among those that name one."""
    assumed_ttft_stretch: float = 7.5
    """Multiple of a prompt's own prefill time that is added to `assumed_ttft_s`, because a long prompt takes longer.
    SLOs are usually set as such a multiple."""
    assumed_tpot_s: float = 0.1
    """TPOT, in seconds, of a request that names none."""
    ttft_margin: float = 0.05
    """Part of each TTFT that is kept in reserve for what no estimate knows. This half of 0.1, together with half of
    1/20 for `overdue_part`, brought 1.5 points of attainment for long prompts and 0.5 for chat and mixed (simulated,
    30 s, three to six seeds, near saturation)."""
    overdue_part: int = 40
    """One prompt token in so many goes to the overdue prompts first. Each such token may make another prompt late,
    while the overdue ones have missed their SLO already; none at all would let them starve."""
    overdue_burst_tokens: int = 8192
    """Prompt tokens that the overdue prompts can have saved up at most, and can have used in advance at most. It bounds
    how long they can be first, or wait, after a quiet time."""


DEADLINES = DeadlineTuning()

Work = Callable[[WaitingSequence], float]
"""Gives the seconds that the rest of a sequence's prefill takes."""


def due_s(sequence: WaitingSequence, work_s: float, tuning: DeadlineTuning = DEADLINES) -> float:
    """Returns the time at which a sequence's next token is due, on the snapshot's clock.

    The first token is due after the TTFT that the client asks for. After a preemption the next one is due as many TPOTs
    later as tokens have been sampled. An explicit deadline takes the place of both if it is earlier. `work_s`: seconds
    of prefill that are left.
    """
    slo = sequence.slo
    ttft = slo.ttft_s if slo.ttft_s is not None else tuning.assumed_ttft_s + tuning.assumed_ttft_stretch * work_s
    tpot = slo.tpot_s if slo.tpot_s is not None else tuning.assumed_tpot_s
    due = sequence.arrival_s + ttft + sequence.output_tokens * tpot
    return due if sequence.deadline_s is None else min(due, sequence.deadline_s)


def start_by_s(sequence: WaitingSequence, work_s: float, tuning: DeadlineTuning = DEADLINES) -> float:
    """Returns the time by which a sequence's prefill must start; later, its next token comes after it is due."""
    return due_s(sequence, work_s, tuning) - work_s


@dataclass(frozen=True, slots=True)
class Ranking:
    """An order of waiting sequences."""

    order: tuple[SequenceId, ...]
    """All sequences, the one to prefill first at the front."""
    overdue: frozenset[SequenceId] = frozenset()
    """Those that were given up so that others can still be in time."""


class _Job(NamedTuple):
    """A sequence's prefill. Jobs sort by due time, and by arrival where that is equal."""

    due_s: float
    sequence: SequenceId
    work_s: float


def rank(
    waiting: Iterable[WaitingSequence],
    start_s: float,
    work_s: Work,
    *,
    margin: float = 0.0,
    overdue_first: bool = False,
    tuning: DeadlineTuning = DEADLINES,
) -> Ranking:
    """Returns the order in which to prefill if the worker is free from `start_s` on. O(n log n).

    `margin`: the part of each SLO that is kept in reserve for what the estimate does not know. `overdue_first`: the
    overdue ones have saved up enough to go first (`Ageing.overdue_first`).
    """
    order: list[SequenceId] = []
    overdue: set[SequenceId] = set()
    by_priority = sorted(waiting, key=lambda w: (-w.priority, w.sequence))
    for _, tier in groupby(by_priority, key=lambda w: w.priority):
        jobs = []
        for w in tier:
            work = work_s(w)
            due = due_s(w, work, tuning)
            jobs.append(_Job(due - margin * (due - w.arrival_s), w.sequence, work))
        kept, given_up = _moore_hodgson(jobs, start_s)
        total = sum(job.work_s for job in kept)
        in_time = [job.sequence for job in _smith(kept, start_s + total)]
        late = sorted(job.sequence for job in given_up)
        order += late + in_time if overdue_first else in_time + late
        overdue.update(late)
        start_s += total + sum(job.work_s for job in given_up)
    return Ranking(tuple(order), frozenset(overdue))


def _moore_hodgson(jobs: Sequence[_Job], start_s: float) -> tuple[list[_Job], list[_Job]]:
    """Returns the jobs that are kept, by due time, and those that are given up."""
    by_due = sorted(jobs)
    most_work: list[tuple[float, int, int]] = []  # a heap of (-work, -sequence, index)
    dropped: set[int] = set()
    end = start_s
    for index, job in enumerate(by_due):
        heapq.heappush(most_work, (-job.work_s, -job.sequence, index))
        end += job.work_s
        if end > job.due_s:
            work, _, worst = heapq.heappop(most_work)
            end += work
            dropped.add(worst)
    kept = [job for index, job in enumerate(by_due) if index not in dropped]
    return kept, [by_due[index] for index in dropped]


def _smith(by_due: Sequence[_Job], end_s: float) -> list[_Job]:
    """Returns the jobs in Smith's order. `end_s`: when the last one ends.

    It goes from the back: of the jobs that may end as late as the present end, it takes the one with the most work.
    """
    candidates: list[tuple[float, int, int]] = []
    backwards: list[_Job] = []
    index = len(by_due) - 1
    while len(backwards) < len(by_due):
        # The job with the latest due time may always end last. `not candidates` only covers rounding errors.
        while index >= 0 and (by_due[index].due_s >= end_s or not candidates):
            heapq.heappush(candidates, (-by_due[index].work_s, -by_due[index].sequence, index))
            index -= 1
        job = by_due[heapq.heappop(candidates)[2]]
        backwards.append(job)
        end_s -= job.work_s
    return backwards[::-1]


class Ageing:
    """Counts tokens, so that overdue sequences get one in `overdue_part` however many others come.

    Only batches that were given out count. The server also asks for a plan when it has no room for a batch; the next
    snapshot shows whether the batch was given out.
    """

    def __init__(self, tuning: DeadlineTuning = DEADLINES) -> None:
        self._tuning = tuning
        self._saved_tokens = 0.0
        self._pending: dict[SequenceId, int] = {}  # planned sequences, and the tokens of each that were computed then
        self._pending_tokens = 0.0  # what is saved if the planned batch was given out; below 0: what is used

    @property
    def overdue_first(self) -> bool:
        """The overdue sequences have saved up a token, and are to go first."""
        return self._saved_tokens >= 1.0

    def see(self, waiting: Sequence[WaitingSequence]) -> None:
        """Counts the last planned batch if it was given out. Call it before each ranking, with what waits then.

        Nothing stays saved while nothing waits.
        """
        if not waiting:
            self._saved_tokens, self._pending = 0.0, {}
        if not self._pending:
            return
        still = {w.sequence: w for w in waiting if w.sequence in self._pending}
        given_out = any(
            number not in still or still[number].in_flight_tokens or still[number].computed_tokens != computed
            for number, computed in self._pending.items()
        )
        if given_out:
            burst = self._tuning.overdue_burst_tokens
            self._saved_tokens = min(burst, max(-burst, self._saved_tokens + self._pending_tokens))
        self._pending = {}

    def planned(self, chunks: Iterable[Chunk], waiting: Iterable[WaitingSequence], ranking: Ranking) -> None:
        """Notes a planned batch. Call it with each batch that is taken from `ranking` of `waiting`."""
        if not ranking.overdue:
            self._saved_tokens = 0.0
            return
        first, saved = self.overdue_first, 0.0
        tokens = {chunk.sequence: chunk.tokens for chunk in chunks}
        for number, count in tokens.items():
            if number not in ranking.overdue:
                saved += count / self._tuning.overdue_part
            elif first:
                saved -= count
        self._pending_tokens = saved
        self._pending = {w.sequence: w.computed_tokens for w in waiting if w.sequence in tokens}
