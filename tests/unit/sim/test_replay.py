from __future__ import annotations

import random
from collections.abc import Callable
from itertools import pairwise
from statistics import mean

import pytest
from unit.sim.rig import NOTHING, Flat, Modelled, Plain, due, run, settings

from semipd.bench.arrivals import Arrival as Due
from semipd.bench.traces import TraceEntry
from semipd.core.partition import FULL, Mode, Shares
from semipd.core.plan import Plan
from semipd.core.request import Slo
from semipd.core.snapshot import Limits, RunningSequence, Snapshot
from semipd.policies.builtin.adaptive.policy import Adaptive
from semipd.policies.builtin.chunked import Chunked
from semipd.policies.builtin.fcfs import Fcfs
from semipd.policies.builtin.static import Static
from semipd.policies.contract import Policy
from semipd.policies.toolkit.latency import split
from semipd.profiles.profile import Overheads
from semipd.sim.replay import Replayed, replay
from semipd.sim.server import Settings
from semipd.testing.world import Arrival, World
from semipd.testing.world import Settings as WorldSettings

HALVES = Shares(50, 50)


def ends(done: Replayed) -> list[float | None]:
    return [None if life.end_s is None else round(life.end_s, 6) for life in done.lives]


def firsts(done: Replayed) -> list[float | None]:
    return [None if life.first_token_s is None else round(life.first_token_s, 6) for life in done.lives]


# --- cases that can be computed in the head ---------------------------------------------------------------------------


def test_a_request_alone_is_its_prompt_and_a_step_for_each_further_token() -> None:
    done = run(Plain(), due((1.0, 100, 5)))
    assert firsts(done) == [1.1]
    assert ends(done) == [1.14]


def test_what_a_token_pays_beside_the_device() -> None:
    overheads = Overheads(arrive_s=0.001, turnaround_s=0.002, prepare_s=0.004, deliver_s=0.008, handover_s=0.0)
    done = run(Plain(), due((0.0, 100, 3)), server=settings(overheads=overheads))
    assert firsts(done) == [0.107]  # arrive + turnaround + prepare + 100 ms; delivery is the report's matter
    assert ends(done) == [pytest.approx(0.107 + 0.002 + 0.02)]  # the decode worker hears of it 2 ms later


def test_side_by_side_each_computes_on_its_share_and_alone_on_all() -> None:
    times = Flat()
    # The second prompt comes when the first decodes: 64 SMs each, so the pass takes 200 ms instead of 100.
    done = run(Plain(HALVES), due((0.0, 100, 100), (0.2, 100, 1)), times)
    assert firsts(done) == [0.1, 0.4]
    assert ("decode", 128, 0) in times.asked
    assert ("decode", 64, 64) in times.asked
    # 10 steps by 0.2 s. The 11th is on the device then, on all SMs; the 12th to the 22nd are launched while the other
    # phase is busy, and take 20 ms; the rest 10 ms.
    assert ends(done)[0] == pytest.approx(0.21 + 11 * 0.02 + (99 - 22) * 0.01)


THREE = ((0.0, 100, 100), (0.205, 100, 1), (0.206, 100, 1), (0.207, 100, 1))
"""The first decodes when three others come, a batch each."""


def test_turns_are_one_pass_of_each() -> None:
    # Prefill takes the turn when it becomes busy, from the end of the step that is on the device by then; a step of the
    # other phase is between two of its batches.
    done = run(Plain(mode=Mode.TURNS, chunk=100), due(*THREE))
    assert firsts(done) == [0.1, 0.31, 0.42, 0.53]
    # Eleven steps by 0.21, one in each of two turns, and from 0.53 on nobody else is there.
    assert ends(done)[0] == pytest.approx(0.53 + (99 - 13) * 0.01)


@pytest.mark.parametrize(
    ("step_tokens", "expected"),
    [(199, [0.31, 0.42, 0.53]), (200, [0.31, 0.41, 0.52]), (300, [0.31, 0.41, 0.51])],
)
def test_prefill_keeps_the_turn_for_as_many_tokens_as_the_plan_says(step_tokens: int, expected: list[float]) -> None:
    done = run(Plain(mode=Mode.TURNS, chunk=100, step_tokens=step_tokens), due(*THREE))
    assert firsts(done)[1:] == [pytest.approx(at) for at in expected]


def test_turns_use_the_whole_device_and_a_hand_over_costs_its_time() -> None:
    times = Flat()
    done = run(
        Plain(HALVES, Mode.TURNS, 100),
        due(*THREE),
        times,
        settings(overheads=Overheads(0.0, 0.0, 0.0, 0.0, handover_s=0.005)),
    )
    assert {sms for _, sms, _ in times.asked} == {128}
    assert firsts(done)[3] == pytest.approx(0.205 + 0.105 + 2 * (0.015 + 0.105))


def test_by_turns_steps_and_passes_take_as_much_longer_as_the_device_says() -> None:
    done = run(Plain(mode=Mode.TURNS, chunk=100), due(*THREE), Flat(step_ratio=1.5, pass_ratio=1.2))
    # The first prompt is alone, and so are its eleven steps. After each of the three passes a step has its turn.
    first = 0.21 + 0.12
    assert firsts(done) == [0.1, *(pytest.approx(first + n * (0.015 + 0.12)) for n in range(3))]
    assert ends(done)[0] == pytest.approx(first + 2 * 0.135 + 0.015 + (99 - 14) * 0.01)


def test_side_by_side_nobody_takes_turns() -> None:
    plain, slow = (run(Plain(HALVES, chunk=100), due(*THREE), Flat(step_ratio=n, pass_ratio=n)) for n in (1.0, 2.0))
    assert (firsts(plain), ends(plain)) == (firsts(slow), ends(slow))


def test_a_plan_that_comes_during_a_pass_is_prepared_meanwhile() -> None:
    overheads = Overheads(0.0, 0.0, prepare_s=0.002, deliver_s=0.0, handover_s=0.0)
    requests = due((0.0, 100, 100), (0.205, 100, 1), (0.25, 100, 1))
    plans = Plain(mode=Mode.TURNS, chunk=100, step_tokens=200)
    done = run(plans, requests, server=settings(overheads=overheads))
    assert firsts(done) == [0.102, pytest.approx(0.212 + 0.1), pytest.approx(0.312 + 0.1)]


def test_two_batches_ahead_and_a_review_every_20_ms() -> None:
    policy = Plain(chunk=100)
    run(policy, due(*[(0.0, 100, 1)] * 4, (0.0, 50, 30)))
    assert max(s.prefill_batches for s in policy.seen) == 2
    times = [s.now_s for s in policy.seen]
    assert all(b - a <= 0.02 + 1e-9 for a, b in pairwise(times))


def test_shares_are_granted_as_green_contexts_have_them() -> None:
    policy = Plain(Shares(63, 37))
    run(policy, due((0.0, 100, 50)))
    assert policy.seen[0].shares == FULL
    assert policy.seen[-1].shares == Shares(62.5, 37.5)


# --- conservation -----------------------------------------------------------------------------------------------------


def traffic(seed: int, count: int = 200, rate: float = 20.0) -> list[Due]:
    draw = random.Random(seed)
    at = 0.0
    found = []
    for index in range(count):
        at += draw.expovariate(rate)
        found.append(Due(index, at, TraceEntry(draw.randint(1, 600), draw.randint(1, 120), 0.5, 0.05)))
    return found


class Fickle(Plain):
    """Another mode with each plan."""

    def plan(self, snapshot: Snapshot) -> Plan:
        self._mode = (Mode.MIXED, Mode.SPLIT, Mode.MIXED, Mode.TURNS)[(len(self.seen) + 1) % 4]
        return super().plan(snapshot)


POLICIES = {
    "fcfs": Fcfs,
    "turns": lambda: Static(Static.Options(mode="turns", chunk=256)),
    "split": lambda: Static(Static.Options(prefill=60, decode=40)),
    "adaptive": Adaptive,
    "chunked": lambda: Chunked(Chunked.Options(budget=200)),
    "fickle": lambda: Fickle(HALVES, chunk=300),
}


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize("pages", [60, 150, 5000])
def test_every_request_ends_once_with_all_its_tokens_and_all_pages_come_back(name: str, pages: int) -> None:
    requests = traffic(3)
    done = run(POLICIES[name](), requests, Flat(0.005, 5e-5), settings(pages=pages, overheads=OVERHEADS))
    for life, request in zip(done.lives, requests, strict=True):
        assert life.end_s is not None
        assert life.output == request.entry.output_len
        assert life.first_token_s is not None
        assert request.at_s < life.first_token_s <= life.end_s
    server = done.server
    assert server.free_pages == pages
    assert (server.alive, server.waiting, server.prefilling, server.decoding) == (0, 0, 0, 0)
    assert server.tokens.total == sum(r.entry.output_len for r in requests)
    gaps = server.gaps.distribution()
    assert gaps is not None
    assert gaps.count == sum(r.entry.output_len - 1 for r in requests)
    assert not server.failures
    if pages == 60:
        assert any(life.preemptions for life in done.lives)


OVERHEADS = Overheads(0.0005, 0.0008, 0.0008, 0.002, 0.0003)


def test_mean_gap_and_largest_gap_are_those_of_the_tokens() -> None:
    # Gaps between first and last token of a request add up to its time, so over all requests both sums are the same.
    done = run(Static(Static.Options(mode="turns")), traffic(5), Flat(0.005, 5e-5), settings(overheads=OVERHEADS))
    spans = sum(life.last_token_s - (life.first_token_s or 0.0) for life in done.lives)
    gaps = done.server.gaps.distribution()
    assert gaps is not None
    assert gaps.mean * gaps.count == pytest.approx(spans)
    assert max(life.largest_gap_s for life in done.lives) == pytest.approx(gaps.max)
    for life in done.lives:
        if life.output > 1:
            assert life.first_token_s is not None
            assert life.largest_gap_s >= (life.last_token_s - life.first_token_s) / (life.output - 1) - 1e-9


@pytest.mark.parametrize("name", POLICIES)
def test_twice_the_same(name: str) -> None:
    one, two = (run(POLICIES[name](), traffic(1), Flat(0.005, 5e-5), settings(overheads=OVERHEADS)) for _ in range(2))
    assert ends(one) == ends(two)
    assert firsts(one) == firsts(two)
    assert one.timeline == two.timeline


def test_a_full_queue_refuses() -> None:
    done = run(Plain(chunk=100), due(*[(0.0, 100, 1)] * 10), server=settings(max_waiting=3))
    assert [life.refused for life in done.lives].count("QUEUE_FULL") == 7
    assert sum(life.end_s is not None for life in done.lives) == 3


def test_the_decode_batch_is_limited() -> None:
    policy = Plain()
    done = run(policy, due(*[(0.0, 10, 20)] * 6), server=settings(max_running=2))
    assert all(life.end_s is not None for life in done.lives)
    assert len({round(end or 0.0, 2) for end in ends(done)}) >= 3  # two by two


def test_a_policy_that_breaks_the_contract_is_replaced_and_the_run_says_so() -> None:
    class Wrong(Plain):
        def plan(self, snapshot: object) -> Plan:
            raise RuntimeError("no idea")

    done = run(Wrong(), due((0.0, 100, 5)))
    assert ends(done) == [0.14]
    assert len(done.server.failures) == 1
    assert "no idea" in done.server.failures[0]


# --- what policies see ------------------------------------------------------------------------------------------------


def test_running_sequences_are_as_they_were_then_however_late_somebody_looks() -> None:
    policy = Plain()
    run(policy, due((0.0, 100, 40), (0.0, 60, 30)))
    for snapshot in policy.seen:  # the run is over, and nothing has been looked at
        running = snapshot.running
        for sequence in running:
            assert type(sequence) is RunningSequence
            assert 1 <= sequence.output_tokens < sequence.max_tokens
            assert sequence.context_tokens == (100, 60)[sequence.sequence] + sequence.output_tokens
            assert sequence.first_token_s <= sequence.last_token_s <= snapshot.now_s
    counts = [s.running[0].output_tokens for s in policy.seen if s.running and s.running[0].sequence == 0]
    assert counts == sorted(counts)
    assert counts[-1] > counts[0]


def test_running_behaves_as_a_tuple() -> None:
    policy = Plain()
    run(policy, due((0.0, 100, 40), (0.0, 60, 30)))
    running = next(s.running for s in policy.seen if len(s.running) == 2)
    as_tuple = tuple(running)
    assert running == as_tuple
    assert running[0] is as_tuple[0]
    assert running[-1:] == as_tuple[1:]
    assert list(reversed(running)) == list(reversed(as_tuple))
    assert (*running, *()) == as_tuple
    assert as_tuple[1] in running
    with pytest.raises(AttributeError):
        running[0].output_tokens = 3  # type: ignore[misc]


# --- the small world of the policies' test kit ------------------------------------------------------------------------


LOADS = [(8.0, 300, 60), (20.0, 250, 80), (2.0, 3000, 40)]
SPLIT_48 = split(48, 132)


def in_both(make: Callable[[], Policy], rate: float, prompt: int, output: int) -> tuple[list[float], list[float]]:
    """Mean TTFT and mean TPOT: in the small world, and here."""
    draw = random.Random(2)
    at, requests = 0.0, []
    for index in range(150):
        at += draw.expovariate(rate)
        sizes = draw.randint(prompt // 2, 3 * prompt // 2), draw.randint(output // 2, 3 * output // 2)
        requests.append(Due(index, at, TraceEntry(*sizes, 1.0, 0.1)))
    modes = frozenset({Mode.SPLIT, Mode.MIXED})
    arrivals = [Arrival(r.at_s, r.entry.prompt_len, r.entry.output_len, Slo(1.0, 0.1)) for r in requests]
    world = World(make(), arrivals, WorldSettings(limits=Limits(8192, 256, modes), shares=SPLIT_48)).run()
    server = Settings(pages=8192, sms=132, overheads=NOTHING, max_running=256, modes=modes)
    mine = replay(make(), requests, server, Modelled(132)).lives
    ttft = [mean(life.ttft_s or 0.0 for life in world), mean((m.first_token_s or 0) - m.arrival_s for m in mine)]
    tpot = [
        mean(life.tpot_s or 0.0 for life in world),
        mean((m.last_token_s - (m.first_token_s or 0)) / (m.output - 1) for m in mine),
    ]
    return ttft, tpot


@pytest.mark.parametrize(("rate", "prompt", "output"), LOADS)
def test_it_agrees_with_the_small_world(rate: float, prompt: int, output: int) -> None:
    options = Static.Options(prefill=SPLIT_48.prefill, decode=SPLIT_48.decode, order="fcfs")
    ttft, tpot = in_both(lambda: Static(options), rate, prompt, output)
    assert ttft[1] == pytest.approx(ttft[0], rel=0.12)
    assert tpot[1] == pytest.approx(tpot[0], rel=0.08)


@pytest.mark.parametrize(("rate", "prompt", "output"), LOADS)
def test_with_mixed_batches_each_chunk_is_a_step_later_than_in_the_small_world(
    rate: float, prompt: int, output: int
) -> None:
    """Its decode launches nothing ahead; here a chunk that is given out finds the next step on the device already."""
    ttft, tpot = in_both(Chunked, rate, prompt, output)
    chunks = -(-prompt // 500)
    assert 0.5 * tpot[0] < ttft[1] - ttft[0] < 1.5 * chunks * tpot[0]
    assert tpot[1] == pytest.approx(tpot[0], rel=0.08)
