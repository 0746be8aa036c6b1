"""The checks that every policy should pass. The built-in ones do; authors run them in their own repositories."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Sequence
from functools import partial

from semipd.core.partition import Mode
from semipd.core.request import Slo
from semipd.core.snapshot import Limits
from semipd.policies.contract import Broken, Policy, ask_plan
from semipd.testing import scenarios
from semipd.testing.world import Arrival, Life, Settings, World

MakePolicy = Callable[[], Policy]
"""Returns a fresh policy each time."""

BUDGET_S = 0.01
"""CPU seconds for a plan with 500 waiting and 500 running sequences; a server ends a call after 0.05 s by default."""
TRIES = 20
"""Number of times that a call is timed before it counts as too long."""
PATIENCE = 60
"""A request must go on within this multiple of the time that it takes alone."""
ALL_MODES = frozenset(Mode)


def check_policy(make: MakePolicy, *, seeds: Sequence[int] = (1, 2), budget_s: float = BUDGET_S) -> None:
    """Runs all checks below. Raises Broken, an AssertionError, which says what went wrong and where."""
    check_moments(make)
    check_worlds(make, seeds)
    check_no_starvation(make)
    check_budget(make, budget_s)


def check_moments(make: MakePolicy, count: int = 150) -> None:
    """Checks that plans for random snapshots keep the contract; full pools and idle servers are among them."""
    for seed in range(count):
        draw = random.Random(seed)
        moment = scenarios.snapshot(draw, draw.choice((0, 1, 5, 30)), draw.choice((0, 1, 20)))
        _told(f"random snapshot {seed}", partial(ask_plan, make(), moment))


def check_worlds(make: MakePolicy, seeds: Sequence[int] = (1, 2)) -> None:
    """Checks each scenario of `semipd.testing.scenarios` in simulated time: all plans keep the contract, all requests
    end, all pages come back, and a second fresh policy plans the same."""
    for scenario in scenarios.SCENARIOS:
        for seed in seeds:
            where = f"{scenario.name}, seed {seed}"
            arrivals = scenario.arrivals(random.Random(seed))
            until_s = _patience_s(arrivals, scenario.settings)
            first, second = (World(make(), arrivals, scenario.settings) for _ in range(2))
            for world in (first, second):
                _told(where, partial(world.run, until_s))
            _all_over(where, first)
            if first.plans != second.plans:
                raise Broken(f"{where}: two fresh policies did not plan the same; is something drawn, or a clock read?")


def check_no_starvation(make: MakePolicy) -> None:
    """Checks that short prompts that come faster than they can be computed keep nobody waiting for ever: neither a long
    prompt that can't be in time any more, nor a sequence that decodes. It plays an engine with a split alone, and one
    with all modes."""
    for modes in (frozenset({Mode.SPLIT}), ALL_MODES):
        settings = Settings(pages=100_000, limits=Limits(2048, 256, modes))
        tokens, answer, rate, came_s = 2000, 8, 220.0, 0.1
        until_s = came_s + PATIENCE * settings.model.prefill_s(tokens, tokens)
        draw = random.Random(7)
        shorts = scenarios.poisson(draw, rate, round(rate * until_s), lambda at: Arrival(at, 256, 1, Slo(ttft_s=0.3)))
        arrivals = [Arrival(0.0, 64, answer), Arrival(came_s, tokens, 1, Slo(ttft_s=0.02)), *shorts]
        world = World(make(), arrivals, settings)
        where = "no starvation" if modes != ALL_MODES else "no starvation, an engine of all modes"
        _told(where, partial(world.run, until_s))
        (long,) = [life for life in world.lives if life.arrival.prompt_tokens == tokens]
        if long.first_token_s is None and not long.refused:
            raise Broken(
                f"{where}: a prompt of {tokens} tokens waits for ever behind short ones, not computed after "
                f"{until_s:.1f} s; let what has waited long go before what has just come"
            )
        decoding = world.lives[0]
        if not decoding.over:
            raise Broken(
                f"{where}: a sequence that decodes waits for ever beside prompts, with {decoding.output} of {answer} "
                f"tokens after {until_s:.1f} s; leave decode a share of the device, or a step now and then"
            )


def check_budget(make: MakePolicy, budget_s: float = BUDGET_S) -> None:
    """Checks that `plan` takes at most `budget_s` of CPU time with 500 waiting and 500 running sequences."""
    moment = scenarios.snapshot(random.Random(3), 500, 500)

    def once() -> float:
        policy = make()
        start = time.thread_time()
        ask_plan(policy, moment)
        return time.thread_time() - start

    took = math.inf
    for _ in range(TRIES):
        took = min(took, once())  # the least: what else the machine does is not the policy's fault
        if took <= budget_s:
            return
    raise Broken(f"a plan for 500 waiting and 500 running sequences takes {took * 1000:.1f} ms of CPU time")


def _told(where: str, check: Callable[[], object]) -> None:
    try:
        check()
    except Broken as error:
        raise Broken(f"{where}: {error}") from error


def _patience_s(arrivals: Sequence[Arrival], settings: Settings) -> float:
    """Returns a moment by which even a slow policy is done: ten times the time of all work, one after another."""
    model, last = settings.model, max(a.at_s for a in arrivals)
    prefill = sum(
        model.prefill_s(1, 1) * (1 + a.prompt_tokens / min(a.prompt_tokens, settings.limits.max_batch_tokens))
        + model.prefill_s(a.prompt_tokens, a.prompt_tokens)
        for a in arrivals
        for _ in range(a.samples)
    )
    decode = sum(a.samples * a.output_tokens for a in arrivals) * model.decode_s(1, 4000)
    return last + 10 * (prefill + decode)


def _all_over(where: str, world: World) -> None:
    left = [life for life in world.lives if not life.over]
    if left:
        raise Broken(f"{where}: {len(left)} requests never end, the first of them {_describe(left[0])}")
    if world.free_pages() != world.settings.pages:
        raise Broken(f"{where}: pages are lost")


def _describe(life: Life) -> str:
    state = "is not computed" if life.first_token_s is None else f"has {life.output} tokens"
    return f"of {life.arrival.prompt_tokens} prompt tokens, which came at {life.arrival.at_s:.2f} s and {state}"


def replay(policy: Policy, arrivals: Sequence[Arrival], settings: Settings | None = None) -> list[Life]:
    """Returns what becomes of these requests under the policy, by arrival. For tests and experiments of an author."""
    return World(policy, arrivals, settings).run()
