"""A batch whose steps are padded lets in as many sequences as is best, by what is told of the traffic."""

from __future__ import annotations

from dataclasses import replace

import pytest

from semipd.core.partition import FULL, Mode, Phase
from semipd.core.plan import Plan
from semipd.core.request import Slo
from semipd.core.snapshot import (
    Completion,
    FirstToken,
    Limits,
    Observed,
    PageUse,
    RunningSequence,
    Snapshot,
    Step,
    WaitingSequence,
)
from semipd.policies.builtin.adaptive.batch_cap import DecodeTraffic, best_batch_size
from semipd.policies.builtin.adaptive.policy import Adaptive
from semipd.policies.toolkit.forecast import FORECAST, Forecaster
from semipd.profiles.latency import shipped_model

MODEL = shipped_model()
SIZES = (64, 128, 256, 384, 512)
CHAT = DecodeTraffic(context_tokens=350, prompt_per_token=1.1, tpot_s=0.033)
SLO = Slo(0.2, 0.0367)


def step_s(size: int) -> float:
    return MODEL.decode_s(size, round(size * CHAT.context_tokens))


class TestBestBatchSize:
    def test_a_size_that_leaves_prompts_too_little_time_is_not_begun(self) -> None:
        tight = replace(CHAT, tpot_s=step_s(512) * 1.4)
        assert best_batch_size(MODEL, SIZES, tight) == 384
        assert best_batch_size(MODEL, (*SIZES[:4], 400, 512), tight) == 400

    def test_the_largest_serves_most_where_the_tpot_leaves_time_and_where_no_prompts_come(self) -> None:
        assert best_batch_size(MODEL, SIZES, replace(CHAT, tpot_s=0.2)) == 512
        assert best_batch_size(MODEL, SIZES, replace(CHAT, tpot_s=step_s(512) * 1.2, prompt_per_token=0.01)) == 512

    def test_the_tighter_the_tpot_the_fewer(self) -> None:
        found = [best_batch_size(MODEL, SIZES, replace(CHAT, tpot_s=tpot)) for tpot in (0.2, 0.04, 0.03, 0.02, 0.012)]
        assert found == sorted(found, reverse=True)
        assert len(set(found)) >= 3

    def test_where_no_size_keeps_the_tpot_nobody_is_held_back(self) -> None:
        assert best_batch_size(MODEL, SIZES, replace(CHAT, tpot_s=0.001)) == 512


def traffic(ended: int, rows: int, steps: int, prompt: int = 200, step_ms: float = 18.0) -> Observed:
    """Makes observations: in `steps` decode steps of `rows` sequences `ended` of these ended, and as many came, with
    prompts of that length."""
    at = [100.0 + 0.03 * n for n in range(steps)]
    return Observed(
        steps=tuple(Step(Phase.DECODE, t, step_ms / 1000, rows, rows, rows * 300, FULL, Mode.TURNS) for t in at),
        first_tokens=tuple(FirstToken(at[-1], 0.05, prompt, SLO) for _ in range(ended)),
        # The first completion in the window says since when all are there.
        completions=tuple(Completion(at[0] + (at[-1] - at[0]) * n / ended, 0.03, 5, SLO) for n in range(ended + 1)),
    )


def seen(observed: Observed) -> float | None:
    forecaster = Forecaster(MODEL)
    forecast = forecaster.see(Snapshot(200.0, (), (), PageUse(900, 1000, 16), Limits(8192, 512), observed=observed))
    return forecast.prompt_per_token


class TestPromptPerToken:
    def test_tokens_of_all_who_run_count_however_short_those_are_that_ended(self) -> None:
        """100 sequences make 64 tokens each while 32 end: one lasts 200 tokens, whatever its completion says."""
        assert seen(traffic(ended=32, rows=100, steps=65, prompt=200)) == pytest.approx(1.0, rel=0.02)
        assert seen(traffic(ended=32, rows=100, steps=65, prompt=400)) == pytest.approx(2.0, rel=0.02)

    def test_too_few_tell_nothing(self) -> None:
        assert seen(traffic(ended=FORECAST.fewest_completions - 1, rows=100, steps=65)) is None
        assert seen(Observed()) is None


class TestAdaptive:
    """Prompts wait, and so many sequences run, long enough to be looked at."""

    def ask(self, rows: int, limits: Limits, observed: Observed | None = None, tpot_s: float = 0.03) -> Plan:
        running = tuple(
            RunningSequence(n, f"r{n}", 8.0, 8.5, 8.5 + 0.03 * 40, 350, 41, 500, 0, Slo(0.2, tpot_s))
            for n in range(rows)
        )
        waiting = tuple(
            WaitingSequence(1000 + n, f"w{n}", 199.99, 20, 0, 0, 0, 500, 0, Slo(0.2, tpot_s), None) for n in range(40)
        )
        pages = PageUse(90_000, 100_000, 16)
        moment = Snapshot(200.0, waiting, running, pages, limits, mode=Mode.TURNS, observed=observed or Observed())
        policy = Adaptive()
        policy.plan(moment)
        return policy.plan(replace(moment, now_s=200.2))

    @pytest.mark.parametrize(("rows", "begun"), [(8, True), (63, True), (66, False), (80, False)])
    def test_no_prompt_is_begun_that_decode_has_no_place_for(self, rows: int, begun: bool) -> None:
        plan = self.ask(rows, Limits(8192, 64, frozenset({Mode.SPLIT, Mode.TURNS})))
        assert bool(plan.prefill) is begun
        assert rows + len(plan.prefill) <= 66 or not begun

    def test_a_batch_does_not_grow_into_a_size_that_serves_less(self) -> None:
        limits = Limits(8192, 512, frozenset({Mode.SPLIT, Mode.TURNS}), SIZES)
        chat = traffic(ended=120, rows=380, steps=65, prompt=220)
        assert len(self.ask(380, limits, chat).prefill) == 4
        assert self.ask(384, limits, chat).prefill == ()
        assert len(self.ask(384, replace(limits, decode_capture_sizes=()), chat).prefill) > 4, "sizes are not known"
        assert len(self.ask(384, limits, chat, tpot_s=0.2).prefill) > 4, "there is time"
        assert len(self.ask(384, limits).prefill) > 4, "nobody has ended, so how long they are is not known"
