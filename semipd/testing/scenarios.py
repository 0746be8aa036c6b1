"""Random traffic and random snapshots. They are the same for the same seed."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace

from semipd.core.partition import Mode, Phase, Shares
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
from semipd.testing.world import Arrival, Settings

ALL_MODES = frozenset(Mode)
TIGHT = Slo(ttft_s=0.15, tpot_s=0.0367)


@dataclass(frozen=True, slots=True)
class Scenario:
    """A server, and the traffic that comes to it. `arrivals` draws that from a random generator."""

    name: str
    settings: Settings
    arrivals: Callable[[random.Random], list[Arrival]]


def poisson(draw: random.Random, rate: float, count: int, one: Callable[[float], Arrival]) -> list[Arrival]:
    """Returns `count` requests that come at `rate` a second; `one` makes the request that comes at a moment."""
    at, found = 0.0, []
    for _ in range(count):
        at += draw.expovariate(rate)
        found.append(one(at))
    return found


def chat(draw: random.Random) -> list[Arrival]:
    return poisson(
        draw, 40.0, 80, lambda at: Arrival(at, _lengths(draw, 120, 2000), _lengths(draw, 40, 200), draw_slo(draw))
    )


def chat_and_documents(draw: random.Random) -> list[Arrival]:
    """Returns requests of which one prompt in ten is long. Some name a priority, a deadline, or no SLO."""

    def one(at: float) -> Arrival:
        prompt = draw.randint(1500, 4000) if draw.random() < 0.1 else _lengths(draw, 120, 800)
        deadline = draw.uniform(0.05, 3.0) if draw.random() < 0.2 else None
        return Arrival(at, prompt, draw.randint(1, 60), draw_slo(draw), draw.choice((0, 0, 0, 1, -1)), deadline)

    return poisson(draw, 30.0, 80, one)


def burst(draw: random.Random) -> list[Arrival]:
    return [Arrival(0.0, _lengths(draw, 300, 3000), draw.randint(1, 20), draw_slo(draw)) for _ in range(60)]


def impatient_clients(draw: random.Random) -> list[Arrival]:
    """Returns requests of which some have several samples, and some have clients that leave before the end."""

    def one(at: float) -> Arrival:
        leaves = draw.uniform(0.0, 2.0) if draw.random() < 0.3 else None
        prompt, output, samples = _lengths(draw, 200, 2000), draw.randint(1, 80), draw.choice((1, 1, 3))
        return Arrival(at, prompt, output, draw_slo(draw), draw.choice((0, 1)), cancel_after_s=leaves, samples=samples)

    return poisson(draw, 25.0, 60, one)


def draw_slo(draw: random.Random) -> Slo:
    return draw.choice((TIGHT, TIGHT, Slo(ttft_s=2.0), Slo(tpot_s=0.05), Slo()))


def _lengths(draw: random.Random, median: int, most: int) -> int:
    return min(most, max(1, round(draw.lognormvariate(0.0, 1.0) * median)))


SCENARIOS = (
    Scenario("chat", Settings(), chat),
    Scenario("chat and documents", Settings(), chat_and_documents),
    Scenario("a burst", Settings(), burst),
    Scenario("a small pool", Settings(pages=300, limits=Limits(2048, 16)), chat_and_documents),
    Scenario("a small engine", Settings(pages=400, limits=Limits(96, 4)), burst),
    Scenario(
        "an engine of all modes", Settings(limits=Limits(8192, 256, ALL_MODES, (64, 128, 192, 256))), chat_and_documents
    ),
    Scenario("clients that leave", Settings(pages=600, limits=Limits(8192, 64, ALL_MODES)), impatient_clients),
    Scenario("a small engine of all modes", Settings(pages=300, limits=Limits(512, 16, ALL_MODES)), chat_and_documents),
)


def snapshot(draw: random.Random, waiting: int, running: int) -> Snapshot:
    """Returns a random moment of a server with that many sequences; the pool may be empty or full."""
    now = 1000.0
    total = draw.choice((64, 1024, 65536))
    limits = Limits(draw.choice((1, 64, 512, 8192)), draw.choice((1, 16, 512)))
    prompts = []
    for number in range(waiting):
        prompt = _lengths(draw, 300, 8000)
        computed = draw.choice((0, 0, 0, draw.randint(0, prompt - 1)))
        flying = draw.choice((0, 0, 0, draw.randint(0, prompt - computed)))
        deadline = draw.choice((None, None, now + draw.uniform(0.0, 5.0)))
        output = draw.choice((0, 0, 0, draw.randint(0, prompt - 1)))
        arrival = now - draw.uniform(0.0, 30.0)
        prompts.append(
            WaitingSequence(
                number,
                f"r{number}",
                arrival,
                prompt,
                computed,
                flying,
                output,
                200,
                draw.choice((0, 0, 1)),
                draw_slo(draw),
                deadline,
            )
        )
    batch = []
    for number in range(waiting, waiting + running):
        output = draw.randint(1, 200)
        first = now - output * draw.uniform(0.005, 0.06)
        batch.append(
            RunningSequence(
                number, f"r{number}", first - 0.1, first, now, _lengths(draw, 800, 9000), output, 300, 0, draw_slo(draw)
            )
        )
    moment = Snapshot(
        now_s=now,
        waiting=tuple(prompts),
        running=tuple(batch),
        pages=PageUse(draw.choice((0, 1, total // 2, total)), total, 16),
        limits=limits,
        shares=Shares(draw.uniform(5, 100), draw.uniform(5, 100)),
        prefill_batches=draw.randint(0, 2),
        observed=observed(draw, now),
    )
    if draw.random() < 0.5:
        return moment
    return replace(moment, limits=replace(limits, modes=ALL_MODES), mode=draw.choice(tuple(Mode)))


def observed(draw: random.Random, now: float) -> Observed:
    """Returns as many observations as the server keeps."""
    shares = Shares(60, 40)
    steps = [
        Step(
            draw.choice((Phase.PREFILL, Phase.DECODE)),
            now - (256 - i) * 0.01,
            draw.uniform(0.005, 0.04),
            8,
            512,
            9000,
            shares,
        )
        for i in range(256)
    ]
    firsts = [FirstToken(now - 1, draw.uniform(0.01, 0.5), 200, draw_slo(draw)) for _ in range(256)]
    ends = [Completion(now - 1, draw.uniform(0.005, 0.05), 50, draw_slo(draw)) for _ in range(256)]
    return Observed(tuple(steps), tuple(firsts), tuple(ends))
