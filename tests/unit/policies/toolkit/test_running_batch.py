"""The running batch is looked over now and then."""

from __future__ import annotations

from collections.abc import Sequence

from semipd.core.request import Slo
from semipd.core.snapshot import Limits, PageUse, RunningSequence, Snapshot
from semipd.policies.toolkit.running_batch import LOOK_S, MUCH, RunningBatch


def moment(now_s: float, contexts: Sequence[int]) -> Snapshot:
    running = tuple(
        RunningSequence(number, f"r{number}", 0.0, 0.1, now_s, context, 5, 100, 0, Slo())
        for number, context in enumerate(contexts)
    )
    return Snapshot(now_s, (), running, PageUse(100, 100, 16), Limits(64, 512))


def test_the_first_look_is_exact() -> None:
    assert RunningBatch().context_tokens(moment(1.0, [100, 200, 301])) == 601


def test_a_look_lasts_a_while() -> None:
    batch, first, later = RunningBatch(), moment(1.0, [100] * 20), moment(1.0 + LOOK_S / 2, [101] * 20)
    assert batch.looked_over(first) is first.running
    assert batch.looked_over(later) is first.running
    assert batch.context_tokens(later) == 2000


def test_after_a_while_it_is_looked_over_again() -> None:
    batch, later = RunningBatch(), moment(1.0 + LOOK_S, [101] * 20)
    batch.looked_over(moment(1.0, [100] * 20))
    assert batch.looked_over(later) is later.running
    assert batch.context_tokens(later) == 2020


def test_who_came_meanwhile_counts_as_the_mean_one() -> None:
    batch = RunningBatch()
    batch.looked_over(moment(1.0, [100] * 20))
    assert batch.context_tokens(moment(1.01, [900] * 21)) == 2100


def test_a_number_that_changes_much_is_a_reason_to_look() -> None:
    batch = RunningBatch()
    for rows in (0, 1, 2, 20, 20 + 20 // MUCH + 1, 5, 0):
        now = moment(1.0, [rows] * rows)
        assert batch.looked_over(now) == now.running
        assert batch.context_tokens(now) == rows * rows


def test_a_clock_that_begins_anew_is_a_reason_to_look() -> None:
    batch, again = RunningBatch(), moment(0.5, [7] * 20)
    batch.looked_over(moment(100.0, [100] * 20))
    assert batch.looked_over(again) is again.running
