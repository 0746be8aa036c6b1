"""Tests when the running batch is sampled, and what a sample says."""

from __future__ import annotations

from collections.abc import Sequence

from semipd.core.request import Slo
from semipd.core.snapshot import Limits, PageUse, RunningSequence, Snapshot
from semipd.policies.toolkit.running_batch import SAMPLING, RunningSample, RunningSampler


def moment(now_s: float, contexts: Sequence[int]) -> Snapshot:
    running = tuple(
        RunningSequence(number, f"r{number}", 0.0, 0.1, now_s, context, 5, 100, 0, Slo())
        for number, context in enumerate(contexts)
    )
    return Snapshot(now_s, (), running, PageUse(100, 100, 16), Limits(64, 512))


def test_the_first_sample_is_exact() -> None:
    assert RunningSampler(RunningSample).context_tokens(moment(1.0, [100, 200, 301])) == 601


def test_a_sample_lasts_a_while() -> None:
    batch, first, later = (
        RunningSampler(RunningSample),
        moment(1.0, [100] * 20),
        moment(1.0 + SAMPLING.period_s / 2, [101] * 20),
    )
    assert batch.sample(first).running is first.running
    assert batch.sample(later).running is first.running
    assert batch.context_tokens(later) == 2000


def test_after_a_while_it_is_sampled_again() -> None:
    batch, later = RunningSampler(RunningSample), moment(1.0 + SAMPLING.period_s, [101] * 20)
    batch.sample(moment(1.0, [100] * 20))
    assert batch.sample(later).running is later.running
    assert batch.context_tokens(later) == 2020


def test_a_sequence_that_came_meanwhile_counts_as_the_mean_one() -> None:
    batch = RunningSampler(RunningSample)
    batch.sample(moment(1.0, [100] * 20))
    assert batch.context_tokens(moment(1.01, [900] * 21)) == 2100


def test_a_number_that_changes_much_is_a_reason_to_sample() -> None:
    batch = RunningSampler(RunningSample)
    for rows in (0, 1, 2, 20, 20 + int(20 * SAMPLING.changed_part) + 1, 5, 0):
        now = moment(1.0, [rows] * rows)
        assert batch.sample(now).running == now.running
        assert batch.context_tokens(now) == rows * rows


def test_a_clock_that_begins_anew_is_a_reason_to_sample() -> None:
    batch, again = RunningSampler(RunningSample), moment(0.5, [7] * 20)
    batch.sample(moment(100.0, [100] * 20))
    assert batch.sample(again).running is again.running
