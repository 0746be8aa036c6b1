"""The paper's Algorithm 1 and its model, case by case (semi-PD, section 5)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest

from semipd.core.partition import FULL, Phase, Shares
from semipd.core.plan import Plan
from semipd.core.request import Slo
from semipd.core.snapshot import Completion, FirstToken, Limits, Observed, PageUse, Snapshot, Step
from semipd.policies.builtin.semi_pd import ControlWindow, LatencyCurves, SemiPd, adjusted, fit, raised, relative

SLO = Slo(ttft_s=1.0, tpot_s=0.1)
TRUE = LatencyCurves(a1=20.0, load=15.0, b1=0.2, a2=30.0, b2=0.1)


def seen(ttft: float | None, tpot: float | None, shares: Shares = FULL) -> ControlWindow:
    return ControlWindow(*relative(shares), ttft, tpot)


class TestAlgorithm:
    def test_when_neither_fails_nothing_changes(self) -> None:
        assert adjusted(Shares(60, 60), seen(0.9, 1.0), TRUE, 5, 10) == Shares(60, 60)

    def test_when_both_fail_nothing_changes(self) -> None:
        assert adjusted(Shares(60, 60), seen(1.5, 1.5), TRUE, 5, 10) == Shares(60, 60)

    def test_when_ttft_fails_x_rises_until_the_model_meets_the_slo(self) -> None:
        got = adjusted(Shares(40, 80), seen(2.0, 0.5), TRUE, 5, 20)
        assert got.decode == 80
        assert TRUE.ttft(relative(got)[0]) <= 1.0 < TRUE.ttft(relative(Shares(got.prefill - 5, 80))[0])

    def test_when_tpot_fails_y_rises_until_the_model_meets_the_slo(self) -> None:
        got = adjusted(Shares(90, 20), seen(0.5, 2.0), TRUE, 5, 20)
        assert got.prefill == 90
        assert TRUE.tpot(relative(got)[1]) <= 1.0 < TRUE.tpot(relative(Shares(90, got.decode - 5))[1])

    def test_at_most_max_steps_are_taken(self) -> None:
        assert adjusted(Shares(40, 80), seen(2.0, 0.5), TRUE, 1, 3) == Shares(43, 80)

    def test_a_rise_beyond_a_hundred_lowers_the_other_instead(self) -> None:
        assert adjusted(FULL, seen(0.5, 2.0), LatencyCurves(0, 0, 0, 60, 0), 5, 10) == Shares(65, 100)
        assert raised(Shares(90, 50), lambda _: math.inf, 5, 4, prefill=True) == Shares(100, 40)

    def test_nobody_is_left_with_nothing(self) -> None:
        assert raised(FULL, lambda _: math.inf, 30, 10, prefill=True) == Shares(100, 40)

    def test_a_latency_that_nobody_observed_does_not_fail(self) -> None:
        assert adjusted(Shares(60, 60), seen(None, None), TRUE, 5, 10) == Shares(60, 60)
        assert adjusted(Shares(60, 60), seen(None, 2.0), TRUE, 5, 10).decode > 60


class TestModel:
    def test_the_queue_never_ends_below_the_load(self) -> None:
        assert TRUE.ttft(15.0) == math.inf

    def test_the_fit_finds_the_curves_behind_the_windows(self) -> None:
        windows = [ControlWindow(x, 100 - x, TRUE.ttft(x), TRUE.tpot(100 - x)) for x in (30, 40, 50, 60, 70)]
        model = fit(windows)
        for x in (35.0, 45.0, 65.0):
            assert model.ttft(x) == pytest.approx(TRUE.ttft(x), rel=0.02)
            assert model.tpot(x) == pytest.approx(TRUE.tpot(x), rel=0.02)

    def test_one_window_gives_the_curve_through_it(self) -> None:
        model = fit([ControlWindow(50, 50, 2.0, 1.5)])
        assert model.ttft(50) == pytest.approx(2.0)
        assert model.ttft(100) == pytest.approx(1.0)
        assert model.tpot(75) == pytest.approx(1.0)

    def test_more_share_never_looks_slower(self) -> None:
        model = fit([ControlWindow(40, 60, 1.0, 1.0), ControlWindow(60, 40, 2.0, 0.5)])
        assert model.ttft(80) <= model.ttft(40)
        assert model.tpot(80) <= model.tpot(40)

    def test_nothing_seen_is_no_fault(self) -> None:
        assert fit([]).tpot(50) == 0.0


def moment(now: float, steps: int, ttft: Sequence[float], tpot: Sequence[float], slo: Slo = SLO) -> Snapshot:
    """All of it observed in the second before `now`."""
    observed = Observed(
        tuple(Step(Phase.DECODE, now - 1 + (i + 1) / (steps + 1), 0.01, 1, 1, 1, FULL) for i in range(steps)),
        tuple(FirstToken(now - 0.5, t, 100, slo) for t in ttft),
        tuple(Completion(now - 0.5, t, 10, slo) for t in tpot),
    )
    return Snapshot(now, (), (), PageUse(10, 10, 16), Limits(64, 8), observed=observed)


class TestPolicy:
    def shares(self, plan: Plan) -> Shares:
        assert plan.shares is not None
        return plan.shares

    def test_nothing_changes_before_the_window_is_over(self) -> None:
        policy = SemiPd(SemiPd.Options(window=20))
        assert self.shares(policy.plan(moment(1.0, 10, [5.0], [0.01]))) == FULL
        assert self.shares(policy.plan(moment(2.0, 9, [5.0], [0.01]))) == FULL
        assert self.shares(policy.plan(moment(3.0, 1, [5.0], [0.01]))) != FULL

    def test_late_first_tokens_move_the_share_to_prefill(self) -> None:
        got = self.shares(SemiPd(SemiPd.Options(window=10)).plan(moment(1.0, 10, [5.0] * 10, [0.01] * 10)))
        assert got == Shares(100, 50)  # ten steps of five percent, for no share meets five times the SLO

    def test_only_the_tail_at_the_percentile_counts(self) -> None:
        calm = moment(1.0, 10, [0.1] * 19 + [9.0], [0.01] * 20)
        assert self.shares(SemiPd(SemiPd.Options(window=10)).plan(calm)) == FULL
        assert self.shares(SemiPd(SemiPd.Options(window=10, percentile=99)).plan(calm)) != FULL

    def test_what_a_window_saw_is_forgotten_by_the_next(self) -> None:
        policy = SemiPd(SemiPd.Options(window=10))
        first = self.shares(policy.plan(moment(1.0, 10, [0.1], [0.15])))
        assert first.prefill < first.decode
        assert self.shares(policy.plan(moment(2.0, 10, [0.1], [0.05]))) == first

    def test_a_default_slo_is_for_requests_that_name_none(self) -> None:
        slow = moment(1.0, 10, [5.0], [0.01], Slo())
        assert self.shares(SemiPd(SemiPd.Options(window=10)).plan(slow)) == FULL
        assert self.shares(SemiPd(SemiPd.Options(window=10, ttft_ms=1000)).plan(slow)) != FULL
