"""Orders prompts by their deadlines: as many in time as can be, the short ones first among those, and nobody starves.

When a sequence's next token is *due* follows from what its client wishes (`due_s`); when its prefill must *start*, from
how long that takes (`start_by_s`). Two textbook rules for one machine then make the order:

* Moore and Hodgson (1968): go through the sequences by due time; whenever one would be late, give up the one with the
  most work so far. No choice leaves fewer late. A prompt that can't be in time even alone never delays one that can;
  and where a long prompt would cost several short ones their time, the long one goes.
* Smith (1956): of those that are left, the one with the most work that can stand to be last is last, and so on towards
  the front. No order in which all are in time has a smaller mean wait: a short prompt waits for a long one only when
  the long one has no slack left to give.

The *late* ones follow, by arrival. So that a stream of others can't keep them waiting for ever, one token in
`LATE_SHARE` goes to them first (`Ageing`): a late sequence waits at most while LATE_SHARE times the tokens of the late
ones that came before it, and its own, are computed. A higher priority is always before a lower one, late or not.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

from semipd.core.plan import Chunk
from semipd.core.snapshot import SequenceId, WaitingSequence

ASSUMED_TTFT_S = 1.0
"""Of a request that names no TTFT; a prompt's own time is added ASSUMED_STRETCH times, as SLOs usually are set."""
ASSUMED_STRETCH = 7.5
ASSUMED_TPOT_S = 0.1
"""Of a preempted sequence whose request names no TPOT."""

LATE_SHARE = 40

Work = Callable[[WaitingSequence], float]
"""Seconds that the rest of a prompt's prefill adds."""


def due_s(sequence: WaitingSequence, work_s: float) -> float:
    """When its next token is due, on the snapshot's clock.

    The first token by the TTFT that the client wishes; after a preemption token n by the pace that it wishes since. An
    explicit deadline, if earlier, takes its place.
    """
    slo = sequence.slo
    first = slo.ttft_s if slo.ttft_s is not None else ASSUMED_TTFT_S + ASSUMED_STRETCH * work_s
    pace = slo.tpot_s if slo.tpot_s is not None else ASSUMED_TPOT_S
    due = sequence.arrival_s + first + sequence.output_tokens * pace
    return due if sequence.deadline_s is None else min(due, sequence.deadline_s)


def start_by_s(sequence: WaitingSequence, work_s: float) -> float:
    """The moment by which its prefill must start: later, the due time is missed."""
    return due_s(sequence, work_s) - work_s


@dataclass(frozen=True, slots=True)
class Ranking:
    """`order` has all sequences; `late` are those of them that are behind because others can still be in time."""

    order: tuple[SequenceId, ...]
    late: frozenset[SequenceId] = frozenset()


@dataclass(frozen=True, slots=True)
class _Job:
    due_s: float
    sequence: SequenceId
    work_s: float


def rank(
    waiting: Iterable[WaitingSequence], start_s: float, work_s: Work, *, margin: float = 0.0, late_first: bool = False
) -> Ranking:
    """The order in which to prefill, if the worker is free from `start_s` on. O(n log n).

    `margin`: part of each wish that is kept in reserve for what the estimate does not know. `late_first`: it is the
    late ones' turn (`Ageing.late_first`).
    """
    order: list[SequenceId] = []
    late: set[SequenceId] = set()
    by_priority = sorted(waiting, key=lambda w: (-w.priority, w.sequence))
    for _, tier in groupby(by_priority, key=lambda w: w.priority):
        jobs = []
        for w in tier:
            work = work_s(w)
            due = due_s(w, work)
            jobs.append(_Job(due - margin * (due - w.arrival_s), w.sequence, work))
        kept, given_up = _moore_hodgson(jobs, start_s)
        total = sum(job.work_s for job in kept)
        on_time = [job.sequence for job in _smith(kept, start_s + total)]
        behind = sorted(job.sequence for job in given_up)
        order += behind + on_time if late_first else on_time + behind
        late.update(behind)
        start_s += total + sum(job.work_s for job in given_up)
    return Ranking(tuple(order), frozenset(late))


def _moore_hodgson(jobs: Sequence[_Job], start_s: float) -> tuple[list[_Job], list[_Job]]:
    """Kept, by due time, and given up."""
    by_due = sorted(jobs, key=lambda job: (job.due_s, job.sequence))
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
    """From the back: of the jobs that may end as late as `end_s`, the one with the most work."""
    candidates: list[tuple[float, int, int]] = []
    backwards: list[_Job] = []
    index = len(by_due) - 1
    while len(backwards) < len(by_due):
        # The latest due may always end last; `not candidates` only sees to it under rounding.
        while index >= 0 and (by_due[index].due_s >= end_s or not candidates):
            heapq.heappush(candidates, (-by_due[index].work_s, -by_due[index].sequence, index))
            index -= 1
        job = by_due[heapq.heappop(candidates)[2]]
        backwards.append(job)
        end_s -= job.work_s
    return backwards[::-1]


class Ageing:
    """Counts tokens, so that late sequences get one in LATE_SHARE however many others come.

    Only batches that were given out count. The server also asks for a plan when it has no room for a batch, so whether
    one was given out is seen in the next snapshot.
    """

    BURST = 8192
    """Tokens of late ones that can have been saved up, or spent ahead."""

    def __init__(self) -> None:
        self._saved = 0.0
        self._pending: dict[SequenceId, int] = {}  # the planned sequences, and what of each was computed then
        self._cost = 0.0

    @property
    def late_first(self) -> bool:
        return self._saved >= 1.0

    def see(self, waiting: Iterable[WaitingSequence]) -> None:
        """Call before each ranking, with the sequences that wait then."""
        if not self._pending:
            return
        still = {w.sequence: w for w in waiting if w.sequence in self._pending}
        given_out = any(
            number not in still or still[number].in_flight_tokens or still[number].computed_tokens != computed
            for number, computed in self._pending.items()
        )
        if given_out:
            self._saved = min(self.BURST, max(-self.BURST, self._saved + self._cost))
        self._pending = {}

    def planned(self, chunks: Iterable[Chunk], waiting: Iterable[WaitingSequence], ranking: Ranking) -> None:
        """Call with each batch that is planned from `ranking` of `waiting`."""
        if not ranking.late:
            self._saved = 0.0
            return
        first, cost = self.late_first, 0.0
        tokens = {chunk.sequence: chunk.tokens for chunk in chunks}
        for number, count in tokens.items():
            if number not in ranking.late:
                cost += count / LATE_SHARE
            elif first:
                cost -= count
        self._cost = cost
        self._pending = {w.sequence: w.computed_tokens for w in waiting if w.sequence in tokens}
