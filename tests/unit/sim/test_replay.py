from __future__ import annotations

import random
from collections.abc import Callable
from itertools import pairwise

import pytest
from unit.sim.rig import NOTHING, Flat, Plain, due, run, settings

from semipd.bench.arrivals import TraceArrival as Due
from semipd.bench.traces import TraceEntry
from semipd.core.partition import FULL, Mode, Shares
from semipd.core.plan import Plan
from semipd.core.request import Slo
from semipd.core.sms import splits
from semipd.core.snapshot import Limits, RunningSequence, Snapshot
from semipd.policies.builtin.adaptive.policy import Adaptive
from semipd.policies.builtin.chunked import Chunked
from semipd.policies.builtin.fcfs import Fcfs
from semipd.policies.builtin.static import Static
from semipd.policies.contract import Policy
from semipd.profiles.latency import shipped_model
from semipd.profiles.profile import Overheads
from semipd.sim.model_times import ModelTimes
from semipd.sim.replay import Replayed, replay
from semipd.sim.settings import SimSettings
from semipd.testing.world import Arrival, World
from semipd.testing.world import Settings as WorldSettings

HALVES = Shares(50, 50)


def ends(done: Replayed) -> list[float | None]:
    return [None if sequence.end_s is None else round(sequence.end_s, 6) for sequence in done.sequences]


def firsts(done: Replayed) -> list[float | None]:
    return [None if sequence.first_token_s is None else round(sequence.first_token_s, 6) for sequence in done.sequences]


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


def traffic(seed: int, count: int = 80, rate: float = 20.0) -> list[Due]:
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


POLICIES: dict[str, Callable[[], Policy]] = {
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
    for sequence, request in zip(done.sequences, requests, strict=True):
        assert sequence.end_s is not None
        assert sequence.output == request.entry.output_len
        assert sequence.first_token_s is not None
        assert request.at_s < sequence.first_token_s <= sequence.end_s
    server = done.server
    assert server.free_pages == pages
    assert (server.alive, server.waiting, server.prefilling, server.decoding) == (0, 0, 0, 0)
    assert server.tokens.total == sum(r.entry.output_len for r in requests)
    gaps = server.gaps.distribution()
    assert gaps is not None
    assert gaps.count == sum(r.entry.output_len - 1 for r in requests)
    assert not done.failures
    if pages == 60:
        assert any(sequence.preemptions for sequence in done.sequences)


OVERHEADS = Overheads(0.0005, 0.0008, 0.0008, 0.002, 0.0003)


def test_mean_gap_and_largest_gap_are_those_of_the_tokens() -> None:
    # Gaps between first and last token of a request add up to its time, so over all requests both sums are the same.
    done = run(Static(Static.Options(mode="turns")), traffic(5), Flat(0.005, 5e-5), settings(overheads=OVERHEADS))
    spans = sum(sequence.last_token_s - (sequence.first_token_s or 0.0) for sequence in done.sequences)
    gaps = done.server.gaps.distribution()
    assert gaps is not None
    assert gaps.mean * gaps.count == pytest.approx(spans)
    assert max(sequence.largest_gap_s for sequence in done.sequences) == pytest.approx(gaps.max)
    for sequence in done.sequences:
        if sequence.output > 1:
            assert sequence.first_token_s is not None
            assert (
                sequence.largest_gap_s
                >= (sequence.last_token_s - sequence.first_token_s) / (sequence.output - 1) - 1e-9
            )


@pytest.mark.parametrize("name", POLICIES)
def test_twice_the_same(name: str) -> None:
    one, two = (run(POLICIES[name](), traffic(1), Flat(0.005, 5e-5), settings(overheads=OVERHEADS)) for _ in range(2))
    assert ends(one) == ends(two)
    assert firsts(one) == firsts(two)
    assert one.timeline == two.timeline


def test_a_full_queue_refuses() -> None:
    done = run(Plain(chunk=100), due(*[(0.0, 100, 1)] * 10), server=settings(max_waiting=3))
    assert [request.reason for request in done.requests].count("QUEUE_FULL") == 7
    assert sum(sequence.end_s is not None for sequence in done.sequences) == 3


def test_the_decode_batch_is_limited() -> None:
    policy = Plain()
    done = run(policy, due(*[(0.0, 10, 20)] * 6), server=settings(max_running=2))
    assert all(sequence.end_s is not None for sequence in done.sequences)
    assert len({round(end or 0.0, 2) for end in ends(done)}) >= 3  # two by two


def test_a_policy_that_breaks_the_contract_is_replaced_and_the_run_says_so() -> None:
    class Wrong(Plain):
        def plan(self, snapshot: object) -> Plan:
            raise RuntimeError("no idea")

    done = run(Wrong(), due((0.0, 100, 5)))
    assert ends(done) == [0.14]
    assert len(done.failures) == 1
    assert "no idea" in done.failures[0]


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


# --- the world of the policies' test kit ------------------------------------------------------------------------------


LOADS = [(8.0, 300, 60), (20.0, 250, 80), (2.0, 3000, 40)]
MODES: dict[str, Callable[[], Policy]] = {
    "split": lambda: Static(Static.Options(prefill=64, decode=36, order="fcfs")),
    "turns": lambda: Static(Static.Options(mode="turns")),
    "mixed": Chunked,
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("rate", "prompt", "output"), LOADS)
def test_the_kits_world_is_this_simulator(mode: str, rate: float, prompt: int, output: int) -> None:
    draw = random.Random(2)
    at, requests = 0.0, []
    for index in range(50):
        at += draw.expovariate(rate)
        sizes = draw.randint(prompt // 2, 3 * prompt // 2), draw.randint(output // 2, 3 * output // 2)
        requests.append(Due(index, at, TraceEntry(*sizes, 1.0, 0.1)))
    arrivals = [Arrival(r.at_s, r.entry.prompt_len, r.entry.output_len, Slo(1.0, 0.1)) for r in requests]
    limits = Limits(8192, 256, frozenset(Mode), latency=shipped_model(), splits=splits(132), sms=132)
    lives = World(MODES[mode](), arrivals, WorldSettings(limits=limits)).run()
    mine = replay(MODES[mode](), requests, SimSettings(8192, limits, NOTHING), ModelTimes(shipped_model(), 132))
    assert [(life.ttft_s, life.tpot_s, life.output) for life in lives] == [
        (s.ttft_s, s.tpot_s, s.output) for s in mine.sequences
    ]
    assert all(life.end_s is not None for life in lives)
