"""The order of waiting prompts: as many in time as can be, the short ones first among those, and nobody starves."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace

import pytest

from semipd.core.plan import Chunk
from semipd.core.request import Slo
from semipd.core.snapshot import SequenceId, WaitingSequence
from semipd.policies.toolkit.deadlines import DEADLINES, Ageing, Ranking, due_s, rank, start_by_s


def waits(
    number: int, tokens: int, ttft_s: float | None, arrival_s: float = 0.0, priority: int = 0, **more: float
) -> WaitingSequence:
    slo = Slo(ttft_s, more.get("tpot_s"))
    output = int(more.get("output", 0))
    return WaitingSequence(
        number, f"r{number}", arrival_s, tokens, 0, 0, output, 100, priority, slo, more.get("deadline_s")
    )


def thousand_a_second(w: WaitingSequence) -> float:
    return w.remaining_tokens / 1000


def order(*waiting: WaitingSequence, start_s: float = 0.0, overdue_first: bool = False) -> tuple[SequenceId, ...]:
    return rank(waiting, start_s, thousand_a_second, overdue_first=overdue_first).order


def missed(sequence: tuple[WaitingSequence, ...]) -> int:
    ends = itertools.accumulate(thousand_a_second(w) for w in sequence)
    return sum(end > due_s(w, 0.0) + 1e-9 for end, w in zip(ends, sequence, strict=True))


def test_the_time_to_start_is_the_due_time_less_the_work() -> None:
    assert start_by_s(waits(1, 200, 0.5, arrival_s=3.0), 0.2) == pytest.approx(3.3)


def test_a_deadline_before_the_ttft_counts() -> None:
    assert due_s(waits(1, 200, 0.5, deadline_s=0.3), 0.2) == 0.3


def test_a_preempted_sequence_is_due_by_its_tpot() -> None:
    assert due_s(waits(1, 200, 0.5, tpot_s=0.04, output=10), 0.2) == pytest.approx(0.9)


def test_a_short_prompt_goes_before_a_long_one_that_has_slack() -> None:
    assert order(waits(1, 4000, 9.0), waits(2, 100, 20.0)) == (2, 1)


def test_a_long_prompt_without_slack_goes_before_a_short_one_that_has_some() -> None:
    assert order(waits(1, 4000, 4.05), waits(2, 100, 20.0)) == (1, 2)


def test_what_cannot_be_in_time_waits_behind_what_can() -> None:
    assert order(waits(1, 1000, 0.5), waits(2, 900, 2.0)) == (2, 1)


def test_one_long_prompt_gives_way_to_several_short_ones() -> None:
    shorts = [waits(n, 100, 0.35) for n in (2, 3, 4)]
    assert order(waits(1, 300, 0.35), *shorts) == (2, 3, 4, 1)


def test_equal_prompts_go_by_arrival() -> None:
    assert order(*(waits(n, 100, 5.0) for n in (3, 1, 2))) == (1, 2, 3)


def test_without_slos_short_prompts_go_first_and_old_ones_are_not_forgotten() -> None:
    fresh = [waits(n, 100, None, arrival_s=30.0) for n in range(2, 6)]
    assert order(waits(1, 1000, None, arrival_s=29.5), *fresh, start_s=30.0) == (2, 3, 4, 5, 1)
    assert order(waits(1, 1000, None, arrival_s=22.55), *fresh, start_s=30.0)[0] == 1


def test_priority_is_before_all() -> None:
    assert order(waits(1, 100, 5.0), waits(2, 4000, 1.0, priority=1)) == (2, 1)


def test_when_it_is_their_turn_the_overdue_go_first_by_arrival() -> None:
    waiting = [waits(1, 1000, 0.5), waits(2, 1000, 0.4), waits(3, 100, 2.0)]
    assert order(*waiting) == (3, 1, 2)
    assert order(*waiting, overdue_first=True) == (1, 2, 3)


def test_no_order_misses_fewer() -> None:
    """Against every permutation, on small random queues."""
    draw = random.Random(4)
    for _ in range(60):
        waiting = tuple(waits(n, draw.randint(50, 500), draw.uniform(0.1, 1.5)) for n in range(5))
        by_number = {w.sequence: w for w in waiting}
        ranked = tuple(by_number[n] for n in order(*waiting))
        assert missed(ranked) == min(missed(p) for p in itertools.permutations(waiting))


def test_where_all_are_in_time_no_such_order_has_a_smaller_mean_wait() -> None:
    def wait(queue: tuple[WaitingSequence, ...]) -> float:
        return sum(itertools.accumulate(thousand_a_second(w) for w in queue))

    draw = random.Random(5)
    for _ in range(60):
        waiting = tuple(waits(n, draw.randint(50, 500), draw.uniform(0.8, 3.0)) for n in range(5))
        good = [p for p in itertools.permutations(waiting) if not missed(p)]
        if good:
            by_number = {w.sequence: w for w in waiting}
            ranked = tuple(by_number[n] for n in order(*waiting))
            assert wait(ranked) == pytest.approx(min(wait(p) for p in good))


def test_the_overdue_get_their_share_of_tokens() -> None:
    ageing, ranking = Ageing(), Ranking((1, 2), frozenset({1}))
    waiting = (waits(1, 10**9, 0.1), waits(2, 10**9, 0.1))
    overdue = others = 0
    for _ in range(100 * DEADLINES.overdue_part):
        first = 1 if ageing.overdue_first else 2
        ageing.planned((Chunk(first, 512),), waiting, ranking)
        ageing.see([replace(w, in_flight_tokens=512) if w.sequence == first else w for w in waiting])
        overdue, others = (overdue + 512, others) if first == 1 else (overdue, others + 512)
    assert others / overdue == pytest.approx(DEADLINES.overdue_part, rel=0.05)


def test_a_plan_that_was_not_given_out_does_not_count() -> None:
    ageing, waiting = Ageing(), (waits(1, 5000, 0.1), waits(2, 5000, 9.0))
    for _ in range(100):
        ageing.planned((Chunk(2, 512),), waiting, Ranking((2, 1), frozenset({1})))
        ageing.see(waiting)
    assert not ageing.overdue_first


def test_nothing_is_saved_up_while_nobody_is_overdue() -> None:
    ageing = Ageing()
    for _ in range(100):
        ageing.planned((Chunk(2, 512),), (waits(2, 5000, 9.0),), Ranking((2,)))
        ageing.see(())
    assert not ageing.overdue_first


@pytest.mark.parametrize("tight", [0.5, 50.0])
def test_the_work_of_each_of_five_hundred_is_estimated_once(tight: float) -> None:
    draw = random.Random(6)
    waiting = tuple(waits(n, draw.randint(10, 4000), draw.uniform(0.05, 2.0) * tight) for n in range(500))
    asked: list[int] = []

    def work(w: WaitingSequence) -> float:
        asked.append(w.sequence)
        return w.prompt_tokens * 25e-6

    assert sorted(rank(waiting, 0.0, work).order) == sorted(asked) == list(range(500))
