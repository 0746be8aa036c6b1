"""The token budget of the chunked policy, and what it does where the engine makes no mixed batches."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Literal

import pytest

from semipd.core.errors import ConfigError
from semipd.core.partition import FULL, Mode, Phase
from semipd.core.plan import Chunk
from semipd.core.request import Slo
from semipd.core.snapshot import Limits, PageUse, RunningSequence, Snapshot, WaitingSequence
from semipd.policies.builtin.chunked import Chunked
from semipd.policies.contract import ask_plan
from semipd.policies.registry import make_policy
from semipd.testing import Arrival, Settings, World

MIXED = Limits(8192, 64, frozenset({Mode.SPLIT, Mode.MIXED}))


def waits(number: int, prompt: int, computed: int = 0, flying: int = 0) -> WaitingSequence:
    return WaitingSequence(number, f"r{number}", 0.0, prompt, computed, flying, 0, 100, 0, Slo(), None)


def moment(*waiting: WaitingSequence, rows: int = 0, limits: Limits = MIXED) -> Snapshot:
    running = tuple(RunningSequence(1000 + n, "", 0.0, 0.1, 0.2, 50, 5, 100, 0, Slo()) for n in range(rows))
    return Snapshot(1.0, waiting, running, PageUse(9000, 10_000, 16), limits)


def test_the_budget_is_what_running_sequences_leave_of_it() -> None:
    plan = Chunked().plan(moment(waits(1, 300), waits(2, 2000), rows=40))
    assert plan.prefill == (Chunk(1, 300), Chunk(2, 512 - 40 - 300))
    assert (plan.mode, plan.shares) == (Mode.MIXED, FULL)


def test_no_remainder_comes_on_top_of_it() -> None:
    assert Chunked(Chunked.Options(budget=100)).plan(moment(waits(1, 101))).prefill == (Chunk(1, 100),)


def test_who_joins_before_the_step_counts() -> None:
    snapshot = moment(waits(1, 50, flying=50), waits(2, 900, flying=10), waits(3, 900), rows=4)
    assert Chunked().plan(snapshot).prefill == (Chunk(3, 512 - 5),)


def test_decodes_go_before_prompts() -> None:
    plan = Chunked(Chunked.Options(budget=32)).plan(moment(waits(1, 50), rows=32))
    assert (plan.prefill, plan.mode) == ((), Mode.MIXED)


def test_the_engines_limit_holds() -> None:
    snapshot = moment(waits(1, 5000), limits=replace(MIXED, max_batch_tokens=256))
    assert Chunked().plan(snapshot).prefill == (Chunk(1, 256),)


def test_an_engine_without_mixed_batches_gets_the_chunks_beside_decode() -> None:
    plan = ask_plan(Chunked(), moment(waits(1, 5000), rows=12, limits=Limits(8192, 64)))
    assert (plan.prefill, plan.mode, plan.shares) == ((Chunk(1, 500),), Mode.SPLIT, FULL)


@pytest.mark.parametrize("order", ["fcfs", "slack"])
def test_everybody_is_served(order: Literal["fcfs", "slack"]) -> None:
    arrivals = [Arrival(0.01 * n, 100 + 37 * n % 3000, 20, Slo(0.2, 0.04)) for n in range(200)]
    world = World(Chunked(Chunked.Options(order=order)), arrivals, Settings(limits=MIXED))
    assert all(life.end_s is not None for life in world.run())
    assert {plan.mode for _, plan in world.plans} == {Mode.MIXED}
    assert max(sum(chunk.tokens for chunk in plan.prefill) for _, plan in world.plans) <= 512


def test_in_the_kits_world_its_prompts_ride_on_decode_steps() -> None:
    arrivals = [Arrival(0.01 * n, 300, 20) for n in range(60)]
    world = World(Chunked(), arrivals, Settings(limits=MIXED))
    world.run()
    steps = world.snapshot().observed.steps
    assert {step.mode for step in steps} == {Mode.MIXED}
    prompts, rows = ([step for step in steps if step.phase is phase] for phase in (Phase.PREFILL, Phase.DECODE))
    together = {step.end_s: step.duration_s for step in rows}
    assert len(prompts) >= 60 * 300 / 512
    riding = [step for step in prompts if step.end_s in together]
    assert len(riding) > len(prompts) / 2
    assert all(together[step.end_s] == step.duration_s for step in riding)
    moments = sorted((step.end_s - step.duration_s, step.end_s) for step in [*rows, *prompts])
    assert all(b >= end - 1e-9 or b == a for (a, end), (b, _) in pairwise(moments)), "one pass at a time"


def test_it_is_found_by_name_and_refuses_what_it_does_not_know() -> None:
    assert make_policy("chunked", {"budget": "1024"}).name == "chunked"
    with pytest.raises(ConfigError, match="option budget: must be a whole number, at least 1; got '0'"):
        make_policy("chunked", {"budget": "0"})
    with pytest.raises(ConfigError, match="no option chunk; it has: budget, order"):
        make_policy("chunked", {"chunk": "4"})
