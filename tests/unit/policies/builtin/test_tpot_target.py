"""Tests of the TPOT target: what lags and leads of the running sequences make of their SLOs."""

from __future__ import annotations

from dataclasses import replace

import pytest

from semipd.core.request import Slo
from semipd.core.snapshot import RunningSequence
from semipd.policies.builtin.adaptive.policy import AdaptiveOptions
from semipd.policies.builtin.adaptive.tpot_target import next_tpot_s, tpot_target
from semipd.policies.builtin.adaptive.tuning import TUNING

PLAIN = replace(TUNING, tpot_margin=0.0)


def runs(tpot_s: float | None, lag_s: float = 0.0, tokens: int = 101) -> RunningSequence:
    """A sequence with `tokens` output tokens that lags behind its SLO, or behind that of a request that names none."""
    slo_s = PLAIN.deadlines.assumed_tpot_s if tpot_s is None else tpot_s
    return RunningSequence(1, "r", 0.0, 1.0, 1.0 + slo_s * (tokens - 1) + lag_s, 500, tokens, 500, 0, Slo(0.2, tpot_s))


def test_a_sequence_on_time_is_to_keep_its_slo() -> None:
    assert tpot_target([runs(0.04)], PLAIN).now_s == pytest.approx(0.04)


def test_after_the_tokens_to_catch_up_a_lag_is_gone() -> None:
    slo_s, lag_s = 0.04, 0.2
    later_s = lag_s + PLAIN.catch_up_tokens * (next_tpot_s(slo_s, lag_s, PLAIN) - slo_s)
    assert later_s == pytest.approx(0.0)


def test_after_a_burst_a_lead_is_gone() -> None:
    slo_s, lead_s = 0.04, 0.2
    later_s = -lead_s + PLAIN.burst_tokens * (next_tpot_s(slo_s, -lead_s, PLAIN) - slo_s)
    assert later_s == pytest.approx(0.0)


def test_a_sequence_that_cannot_be_helped_is_not_made_faster_without_bound() -> None:
    assert next_tpot_s(0.04, 100.0, PLAIN) == pytest.approx(0.04 * (1 - PLAIN.catch_up_limit))


def test_a_large_lead_does_not_stop_a_sequence() -> None:
    assert next_tpot_s(0.04, -100.0, PLAIN) == pytest.approx(0.04 * PLAIN.burst_limit)


def test_the_lasting_target_is_the_tightest_slo_less_the_margin() -> None:
    running = [runs(0.04, lag_s=0.2), runs(0.02), runs(None)]
    assert tpot_target(running, replace(PLAIN, tpot_margin=0.1)).lasting_s == pytest.approx(0.018)


def test_a_sequence_that_has_just_begun_does_not_count_beside_others() -> None:
    begun = runs(0.01, lag_s=5.0, tokens=PLAIN.warm_up_tokens - 1)
    assert tpot_target([runs(0.04), begun], PLAIN).now_s == pytest.approx(0.04)
    assert tpot_target([begun], PLAIN).now_s < 0.01


def test_options_take_the_place_of_constants() -> None:
    assert AdaptiveOptions().tuning() == TUNING
    changed = AdaptiveOptions(batch_ms=30, ahead_ms=4, margin=20, dwell_ms=100).tuning()
    assert changed == replace(TUNING, batch_s=0.03, ahead_s=0.004, tpot_margin=0.2, dwell_s=0.1)
