from __future__ import annotations

from semipd.coordinator.observations import WINDOW_S, LatencyPercentiles, Observations, percentiles
from semipd.core.config import OBSERVATIONS_KEPT
from semipd.core.partition import FULL, Phase
from semipd.core.request import Slo
from semipd.core.snapshot import Completion, FirstToken, Step


def test_percentiles_are_by_nearest_rank() -> None:
    assert percentiles((float(n), 1) for n in range(100, 0, -1)) == LatencyPercentiles(50.0, 90.0, 99.0)


def test_percentiles_of_one_value_are_that_value() -> None:
    assert percentiles([(3.0, 1)]) == LatencyPercentiles(3.0, 3.0, 3.0)


def test_a_value_counts_as_often_as_it_was_seen() -> None:
    assert percentiles([(5.0, 1), (1.0, 89), (3.0, 1), (4.0, 9)]) == LatencyPercentiles(1.0, 3.0, 4.0)


def test_what_a_policy_sees_is_bounded_and_the_latest() -> None:
    seen = Observations()
    for n in range(OBSERVATIONS_KEPT + 10):
        seen.step(Step(Phase.DECODE, float(n), 0.01, 1, 1, 10, FULL))
        seen.first_token(FirstToken(float(n), 0.1, 5, Slo()))
        seen.completion(Completion(float(n), 0.01, 5, Slo()), 0.1)
    observed = seen.observed()
    assert (len(observed.steps), len(observed.first_tokens), len(observed.completions)) == (
        OBSERVATIONS_KEPT,
        OBSERVATIONS_KEPT,
        OBSERVATIONS_KEPT,
    )
    assert observed.steps[-1].end_s == OBSERVATIONS_KEPT + 9
    assert seen.observed() is observed, "nothing changed, so nothing is copied"


def test_people_see_the_last_thirty_seconds() -> None:
    seen = Observations()
    seen.first_token(FirstToken(0.0, 9.0, 5, Slo()))
    seen.first_token(FirstToken(100.0, 1.0, 5, Slo()))
    seen.gap(100.0, 0.02)
    spread = seen.ttft(100.0)
    assert spread is not None
    assert (spread.p50, spread.p99) == (1.0, 1.0)
    assert seen.tokens_per_second(100.0) == 1 / WINDOW_S
    assert seen.itl(100.0 + WINDOW_S + 1) is None


def test_attainment_is_of_those_who_named_an_slo() -> None:
    seen = Observations()
    seen.completion(Completion(1.0, 0.01, 5, Slo()), 9.0)
    assert seen.attainment(1.0) is None
    seen.completion(Completion(1.0, 0.01, 5, Slo(ttft_s=1.0)), 0.5)
    seen.completion(Completion(1.0, 0.01, 5, Slo(ttft_s=1.0)), 1.5)
    assert seen.attainment(1.0) == 0.5
