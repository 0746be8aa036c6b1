"""Tests of the split, the mode, the chunks and the admission of `adaptive`."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace

import pytest

from semipd.core.latency import LatencyModel, Scales
from semipd.core.partition import FULL, Mode
from semipd.core.request import Slo
from semipd.core.sms import split, splits
from semipd.core.snapshot import Limits, PageUse, RunningSequence, Snapshot, WaitingSequence
from semipd.policies.builtin.adaptive.modes import (
    Hysteresis,
    ModeCandidate,
    ServingLoad,
    best_of,
    candidates,
    mixed_candidate,
    split_candidate,
    time_slice_candidate,
)
from semipd.policies.builtin.adaptive.policy import Adaptive
from semipd.policies.builtin.adaptive.tuning import TUNING
from semipd.policies.builtin.static import Static
from semipd.policies.contract import Policy
from semipd.profiles.latency import shipped_model
from semipd.testing import Arrival, Settings, World
from semipd.testing.scenarios import poisson

MODEL = shipped_model()
SPLIT_ONLY = Limits(8192, 512, splits=splits(132), sms=132)
SPLITS = SPLIT_ONLY.splits
LOAD = ServingLoad(decode_rows=64, context_tokens=64 * 1024, tpot_target_s=0.033, chunk_tokens=512)
LONG = ServingLoad(
    decode_rows=28,
    context_tokens=28 * 3800,
    tpot_target_s=0.034,
    chunk_tokens=1984,
    prompt_tokens=3700,
    computed_tokens=1800,
)


def waits(number: int, tokens: int, computed: int = 0, flying: int = 0, ttft_s: float | None = 0.2) -> WaitingSequence:
    return WaitingSequence(number, f"r{number}", 10.0, tokens, computed, flying, 0, 100, 0, Slo(ttft_s, 0.04), None)


def runs(number: int, tpot_s: float | None = 0.0367, took_s: float = 0.1, context: int = 1024) -> RunningSequence:
    """Eleven tokens, the last ten of them in `took_s`."""
    return RunningSequence(number, f"r{number}", 8.0, 8.5, 8.5 + took_s, context, 11, 100, 0, Slo(0.2, tpot_s))


def moment(waiting: list[WaitingSequence], running: list[RunningSequence], **changes: object) -> Snapshot:
    plain = Snapshot(10.0, tuple(waiting), tuple(running), PageUse(9000, 10_000, 16), SPLIT_ONLY, shares=split(48, 132))
    return replace(plain, **changes)  # type: ignore[arg-type]


def turns(model: LatencyModel, load: ServingLoad, tokens: int) -> ModeCandidate:
    batch_s = model.passes_s(load.computed_tokens)
    step_s = model.decode_s(load.decode_rows, load.context_tokens)
    return time_slice_candidate(load, tokens, step_s, batch_s(min(load.prompt_tokens, load.chunk_tokens)), batch_s)


def best(model: LatencyModel, load: ServingLoad, limits: Limits) -> ModeCandidate:
    return best_of(list(candidates(model, load, limits)), load)


class TestModes:
    def test_the_smallest_decode_share_that_keeps_the_tpot_target(self) -> None:
        chosen = best(MODEL, LOAD, SPLIT_ONLY)
        smaller = [s for s in SPLITS if s.decode < chosen.shares.decode]
        assert smaller
        assert chosen.tpot_s <= LOAD.tpot_target_s
        assert all(split_candidate(MODEL, LOAD, s).tpot_s > LOAD.tpot_target_s for s in smaller)

    def test_a_tighter_tpot_target_takes_more(self) -> None:
        shares = [best(MODEL, replace(LOAD, tpot_target_s=p), SPLIT_ONLY).shares.decode for p in (0.03, 0.02, 0.013)]
        assert shares == sorted(shares)
        assert shares[0] < shares[-1]

    def test_where_no_split_keeps_the_tpot_target_the_nearest_is_taken(self) -> None:
        chosen = best(MODEL, replace(LOAD, tpot_target_s=0.001), SPLIT_ONLY)
        assert chosen.tpot_s == min(split_candidate(MODEL, LOAD, s).tpot_s for s in SPLITS)

    def test_only_what_the_engine_can_do_is_chosen(self) -> None:
        many = replace(LONG, arriving_tokens_per_s=40_000.0)
        assert best(MODEL, many, SPLIT_ONLY).mode is Mode.SPLIT
        assert best(MODEL, many, replace(SPLIT_ONLY, modes=frozenset({Mode.SPLIT, Mode.TURNS}))).mode is Mode.TURNS
        assert best(MODEL, many, replace(SPLIT_ONLY, modes=frozenset(Mode))).mode is Mode.MIXED

    def test_mixed_batches_which_serve_most_and_answer_late_are_for_when_much_arrives(self) -> None:
        everything = replace(SPLIT_ONLY, modes=frozenset(Mode))
        few, many = (best(MODEL, replace(LONG, arriving_tokens_per_s=a), everything) for a in (5_000.0, 40_000.0))
        assert (few.mode, many.mode) == (Mode.TURNS, Mode.MIXED)
        assert many.prefill_tokens_per_s > few.prefill_tokens_per_s

    def test_a_split_is_for_where_turns_are_too_long(self) -> None:
        modes = replace(SPLIT_ONLY, modes=frozenset({Mode.SPLIT, Mode.TURNS}))
        shortest = turns(MODEL, LOAD, TUNING.time_slice_tokens[0]).tpot_s
        assert best(MODEL, replace(LOAD, tpot_target_s=shortest * 1.01), modes).mode is Mode.TURNS
        assert best(MODEL, replace(LOAD, tpot_target_s=shortest * 0.9), modes).mode is Mode.SPLIT

    def test_first_tokens_come_the_later_the_more_prompts_arrive(self) -> None:
        times = [turns(MODEL, replace(LOAD, arriving_tokens_per_s=a), 512).ttft_s for a in range(0, 60_000, 5_000)]
        assert times == sorted(times)
        assert len(set(times)) == len(times)

    def test_the_cpus_mixed_batches_which_the_model_knows_nothing_of_are_not_chosen(self) -> None:
        on_cpu = replace(SPLIT_ONLY, modes=frozenset({Mode.SPLIT, Mode.MIXED}))
        for pace in (0.001, 0.02, 0.06, 1.0):
            load = replace(LOAD, tpot_target_s=pace)
            assert best(MODEL, load, on_cpu) == best(MODEL, load, SPLIT_ONLY)

    def test_nothing_better_is_passed_over(self) -> None:
        """Against all turns and mixed batches, and splits where turns are too long, under random loads and speeds."""
        draw = random.Random(2)
        everything = replace(SPLIT_ONLY, modes=frozenset(Mode))
        for _ in range(300):
            rows, pace = draw.randint(1, 256), draw.uniform(0.004, 0.08)
            chunk, wait = draw.randint(4, 64) * 32, draw.uniform(0.02, 1.0)
            comes = draw.choice((30, 300, 3000)), draw.uniform(0.0, 50_000.0), draw.choice((0, 0, 3000))
            load = ServingLoad(rows, rows * draw.randint(50, 4000), pace, chunk, wait, *comes)
            scales = Scales(*(draw.uniform(0.5, 2.0) for _ in range(5)))
            model = replace(MODEL, scales=scales)
            found = [turns(model, load, tokens) for tokens in TUNING.time_slice_tokens]
            if found[0].tpot_s > pace:
                found += [split_candidate(model, load, shares) for shares in SPLITS]
            mixed = [mixed_candidate(model, load, tokens) for tokens in TUNING.mixed_tokens]
            batches = TUNING.mixed_batches_to_first_token
            found += [candidate for candidate in mixed if batches * candidate.tpot_s <= load.mixed_ttft_s]
            chosen = best(model, load, everything)
            keeping = [c.ttft_s for c in found if c.tpot_s <= pace]
            if keeping:
                assert chosen.tpot_s <= pace
                assert chosen.ttft_s == min(keeping)
            else:
                assert chosen.tpot_s == min(c.tpot_s for c in found)

    def test_turns_are_no_longer_than_the_tpot_target(self) -> None:
        chosen = best(MODEL, replace(LOAD, tpot_target_s=0.06), Limits(8192, 512, frozenset({Mode.SPLIT, Mode.TURNS})))
        assert chosen.mode is Mode.TURNS
        assert chosen.chunk_tokens <= LOAD.chunk_tokens
        assert chosen.step_tokens
        batches = -(-chosen.step_tokens // LOAD.chunk_tokens)
        batch_s = MODEL.prefill_s(chosen.step_tokens // batches, chosen.step_tokens // batches)
        assert chosen.tpot_s == pytest.approx(batches * batch_s + MODEL.decode_s(LOAD.decode_rows, LOAD.context_tokens))
        assert chosen.tpot_s <= 0.06

    def test_no_mixed_batch_is_so_long_that_short_prompts_would_wait_too_long(self) -> None:
        loose = replace(LOAD, tpot_target_s=0.06)
        for wait_s in (0.03, 0.06, 0.1, 0.2):
            chosen = best(MODEL, replace(loose, mixed_ttft_s=wait_s), replace(SPLIT_ONLY, modes=frozenset(Mode)))
            assert chosen.mode is not Mode.MIXED or TUNING.mixed_batches_to_first_token * chosen.tpot_s <= wait_s


class TestHysteresis:
    RULE = Hysteresis(dwell_s=1.0, gain=0.03)

    def at(self, sms: int, load: ServingLoad = LOAD) -> ModeCandidate:
        return split_candidate(MODEL, load, split(sms, 132))

    def test_decode_gets_more_at_once_when_its_tpot_target_is_missed(self) -> None:
        load = replace(LOAD, tpot_target_s=0.015)
        assert self.RULE.settle(self.at(16, load), self.at(64, load), load, 0.0).shares == split(64, 132)

    def test_prefill_gets_more_only_after_a_while(self) -> None:
        assert self.RULE.settle(self.at(64), self.at(32), LOAD, 0.5).shares == split(64, 132)
        assert self.RULE.settle(self.at(64), self.at(32), LOAD, 1.5).shares == split(32, 132)

    def test_what_barely_keeps_the_tpot_target_is_not_worth_a_change(self) -> None:
        barely = replace(LOAD, tpot_target_s=self.at(32).tpot_s * 1.01)
        assert self.RULE.settle(self.at(64, barely), self.at(32, barely), barely, 9.0).shares == split(64, 132)

    def test_a_steady_load_changes_little(self) -> None:
        arrivals = poisson(random.Random(2), 40.0, 300, lambda at: Arrival(at, 230, 120, Slo(0.1, 0.0367)))
        world = World(Adaptive(), arrivals)
        world.run()
        shares = [plan.shares for _, plan in world.plans if plan.shares is not None]
        assert sum(a != b for a, b in itertools.pairwise(shares)) <= 12


class TestPlan:
    def test_while_no_prompt_waits_the_shares_stay(self) -> None:
        assert Adaptive().plan(moment([], [runs(1)])).shares is None

    def test_the_tightest_slo_of_a_running_sequence_decides(self) -> None:
        batch = [runs(n) for n in range(64)]
        loose = Adaptive().plan(moment([waits(100, 500)], batch)).shares
        tight = Adaptive().plan(moment([waits(100, 500)], [*batch, runs(64, tpot_s=0.014)])).shares
        assert loose is not None
        assert tight is not None
        assert tight.decode > loose.decode

    def test_sequences_that_lag_are_helped_to_catch_up_unless_they_are_few(self) -> None:
        batch = [runs(n, took_s=0.1) for n in range(64)]

        def decode_share(lagging: int, tpot_s: float = 0.0367) -> float:
            late = [runs(64 + n, took_s=1.3, tpot_s=tpot_s) for n in range(lagging)]
            shares = Adaptive().plan(moment([waits(100, 500)], [*batch[lagging:], *late])).shares
            assert shares is not None
            return shares.decode

        assert decode_share(60) > decode_share(0)
        assert decode_share(1) == decode_share(0)
        assert decode_share(1, tpot_s=0.03) > decode_share(0)  # with an SLO of its own it is not one of many

    def test_a_long_prompt_is_cut_so_that_a_batch_is_short(self) -> None:
        (chunk,) = Adaptive().plan(moment([waits(1, 4000, ttft_s=0.1)], [runs(2)])).prefill
        assert chunk.tokens < 1000
        patient = Adaptive(Adaptive.Options(batch_ms=80))
        (longer,) = patient.plan(moment([waits(1, 4000, ttft_s=0.1)], [runs(2)])).prefill
        assert longer.tokens > chunk.tokens

    def test_the_next_batch_is_held_back_until_the_worker_is_nearly_free(self) -> None:
        policy = Adaptive()
        policy.plan(moment([waits(1, 4000)], [runs(3)]))
        busy = moment([waits(1, 4000, 0, 512), waits(2, 100)], [runs(3)], prefill_batches=1)
        assert policy.plan(replace(busy, now_s=10.005)).prefill == ()
        assert policy.plan(replace(busy, now_s=10.020)).prefill != ()

    def test_a_mode_that_the_engine_has_is_asked_for(self) -> None:
        limits = Limits(8192, 512, frozenset({Mode.SPLIT, Mode.TURNS}))
        batch = [runs(n, tpot_s=0.08) for n in range(64)]
        plan = Adaptive().plan(moment([waits(100, 5000)], batch, limits=limits))
        assert (plan.mode, plan.shares) == (Mode.TURNS, FULL)


class TestAdmit:
    def ask(self, deadline_s: float | None, queue: int = 20) -> tuple[bool, float | None]:
        waiting = [waits(n, 4000) for n in range(queue)]
        newcomer = replace(waits(99, 400, ttft_s=5.0), deadline_s=deadline_s)
        answer = Adaptive().admit(moment(waiting, []), newcomer)
        return answer.accept, answer.retry_after_s

    def test_an_slo_alone_never_refuses(self) -> None:
        assert self.ask(None) == (True, None)

    def test_a_deadline_that_can_be_met_is_accepted(self) -> None:
        assert self.ask(10.0 + 60.0)[0]
        assert self.ask(10.0 + 0.5, queue=0)[0]

    def test_a_deadline_that_cannot_is_refused_with_a_time_to_come_again(self) -> None:
        accepted, retry_s = self.ask(10.0 + 0.001)
        assert not accepted
        assert retry_s is not None
        assert retry_s > 0


def goodput(policy: Policy, rate: float) -> float:
    """Returns the share of requests in time in chat with one long prompt in twenty, each with an SLO of 7.5 times its
    own latency."""
    draw = random.Random(11)

    def one(at: float) -> Arrival:
        tokens = draw.randint(3500, 4500) if draw.random() < 0.05 else draw.randint(20, 500)
        return Arrival(at, tokens, draw.randint(20, 300), Slo(7.5 * MODEL.prefill_s(tokens, tokens), 0.0367))

    lives = World(policy, poisson(draw, rate, 400, one)).run()
    return sum(life.in_time for life in lives) / len(lives)


def test_more_requests_are_in_time_than_under_any_fixed_split() -> None:
    fixed = [Static(Static.Options(prefill=s.prefill, decode=s.decode)) for s in SPLITS[:4]]
    assert goodput(Adaptive(), 38.0) >= max(goodput(policy, 38.0) for policy in fixed) - 0.01


def test_order_by_slack_is_worth_more_than_arrival() -> None:
    by_slack = Static.Options(prefill=70, decode=30)
    by_arrival = replace(by_slack, order="fcfs")
    assert goodput(Static(by_slack), 32.0) > goodput(Static(by_arrival), 32.0) + 0.1


def test_a_device_with_slower_decode_is_learned_and_its_tpot_kept() -> None:
    slow = replace(MODEL, weights_s=MODEL.weights_s * 1.8, kv_s=MODEL.kv_s * 1.8, row_s=MODEL.row_s * 1.8)
    arrivals = poisson(random.Random(3), 20.0, 200, lambda at: Arrival(at, 400, 100, Slo(1.0, 0.0367)))
    lives = World(Adaptive(), arrivals, Settings(model=slow)).run()
    paces = [life.tpot_s for life in lives if life.tpot_s is not None]
    assert sum(pace <= 0.0367 for pace in paces) / len(paces) > 0.95
