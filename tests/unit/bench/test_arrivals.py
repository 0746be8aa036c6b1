"""Arrivals are a Poisson process of the rate that was asked for, the same for a seed."""

from __future__ import annotations

import math
import statistics
from itertools import pairwise

import pytest

from semipd.bench.arrivals import arrivals, poisson_times
from semipd.bench.errors import InputError
from semipd.bench.traces import TraceEntry

TRACE = [TraceEntry(n, 1, 1.0, 1.0) for n in (1, 2, 3)]


def test_the_same_seed_gives_the_same_times_and_another_gives_others() -> None:
    assert poisson_times(5, 10, 1) == poisson_times(5, 10, 1)
    assert poisson_times(5, 10, 1) != poisson_times(5, 10, 2)
    assert poisson_times(2, 2, 0)[:2] == pytest.approx([0.930304, 1.639618], abs=1e-6)


def test_a_longer_run_begins_as_the_shorter_one() -> None:
    short = poisson_times(5, 10, 1)
    assert poisson_times(5, 20, 1)[: len(short)] == short


def test_gaps_are_exponential_and_counts_have_the_variance_of_a_poisson_process() -> None:
    rate, seconds = 20.0, 2000
    times = poisson_times(rate, seconds, 7)
    gaps = [after - before for before, after in pairwise([0.0, *times])]
    assert statistics.mean(gaps) == pytest.approx(1 / rate, rel=0.02)
    for q in (0.25, 0.5, 0.9, 0.99):
        seen = sum(gap <= -math.log(1 - q) / rate for gap in gaps) / len(gaps)
        assert seen == pytest.approx(q, abs=0.01)
    counts = [0] * seconds
    for at in times:
        counts[int(at)] += 1
    assert statistics.variance(counts) == pytest.approx(rate, rel=0.1)


def test_requests_come_in_the_order_of_the_trace_and_from_its_top_again() -> None:
    due = arrivals(TRACE, 10, 2, 0)
    assert [a.index for a in due] == list(range(len(due)))
    assert [a.entry.prompt_len for a in due[:7]] == [1, 2, 3, 1, 2, 3, 1]
    assert all(0 <= a.at_s < 2 for a in due)


@pytest.mark.parametrize(("rate", "duration"), [(0, 1), (-1, 1), (math.nan, 1), (math.inf, 1), (1, 0), (1, math.inf)])
def test_a_rate_or_duration_that_is_not_above_zero_is_refused(rate: float, duration: float) -> None:
    with pytest.raises(InputError, match="must be above 0"):
        arrivals(TRACE, rate, duration, 0)


def test_a_run_in_which_nothing_arrives_is_refused() -> None:
    with pytest.raises(InputError, match="no request arrives"):
        arrivals(TRACE, 0.001, 0.001, 0)
