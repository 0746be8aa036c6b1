"""Priorities, deadlines, clients that leave, several samples, and plans that hold back or preempt, in simulated time.

A step takes 10 ms, and a pass 1 ms for each token of a prompt.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import replace

import pytest
from unit.sim.rig import Flat, Plain, due, run, settings

from semipd.bench.arrivals import TraceArrival
from semipd.bench.settings import RunSettings
from semipd.bench.traces import TraceEntry
from semipd.core.partition import Mode, Shares
from semipd.core.plan import Plan
from semipd.core.snapshot import SequenceId, Snapshot
from semipd.policies.builtin.adaptive.policy import Adaptive
from semipd.policies.builtin.chunked import Chunked
from semipd.policies.builtin.fcfs import Fcfs
from semipd.policies.builtin.static import Static
from semipd.policies.contract import Policy
from semipd.profiles.profile import Overheads
from semipd.sim.replay import Replayed
from semipd.sim.run import judged, record

OVERHEADS = Overheads(0.0005, 0.0008, 0.0008, 0.002, 0.0003)


def asked(at_s: float, prompt: int, output: int, **others: object) -> TraceArrival:
    return TraceArrival(0, at_s, replace(TraceEntry(prompt, output, 1.0, 0.1), **others))  # type: ignore[arg-type]


def numbered(*arrivals: TraceArrival) -> list[TraceArrival]:
    return [replace(arrival, index=index) for index, arrival in enumerate(arrivals)]


def ends(done: Replayed) -> list[float | None]:
    return [None if s.end_s is None else round(s.end_s, 6) for s in done.sequences]


def reasons(done: Replayed) -> list[str]:
    return [request.reason for request in done.requests]


# --- deadlines and clients that leave ---------------------------------------------------------------------------------


def test_a_deadline_that_passes_in_the_queue_ends_the_request_there() -> None:
    # The first two batches are given out at once, the others when one is answered.
    requests = [asked(0.0, 100, 1)] * 2 + [asked(0.0, 100, 1, deadline_s=d) for d in (0.05, 0.15)]
    done = run(Plain(chunk=100), numbered(*requests))
    assert ends(done) == [0.1, 0.2, None, None]
    assert reasons(done) == ["", "", "EXPIRED_IN_QUEUE", "EXPIRED_RUNNING"]
    assert [r.stopped_s for r in done.requests[2:]] == [pytest.approx(0.05), pytest.approx(0.15)]
    assert done.server.free_pages == 1000


def test_a_deadline_that_passes_while_it_decodes_frees_its_pages_and_its_row() -> None:
    policy = Plain()
    done = run(policy, numbered(asked(0.0, 100, 1000, deadline_s=0.255), asked(0.0, 60, 20)))
    assert reasons(done) == ["EXPIRED_RUNNING", ""]
    # Both prompts are one pass of 160 ms. Steps end at 0.17, 0.18 ... 0.25, so it has ten tokens.
    assert [s.output for s in done.sequences] == [10, 20]
    assert done.server.free_pages == 1000
    assert done.server.decoding == 0
    after = [s.running for s in policy.seen if s.now_s > 0.255]
    assert after
    assert all([r.sequence for r in running] == [1] for running in after)


def test_a_deadline_that_passes_while_its_prompt_is_computed_frees_pages_when_the_pass_ends() -> None:
    policy = Plain(chunk=100)
    done = run(policy, numbered(asked(0.0, 100, 5, deadline_s=0.05), asked(0.0, 100, 5), asked(0.0, 100, 1)))
    # The pass is on the device and ends at 0.1.
    assert ends(done) == [None, pytest.approx(0.24), 0.3]
    assert reasons(done) == ["EXPIRED_RUNNING", "", ""]
    free = {round(s.now_s, 3): s.pages.free for s in policy.seen}
    assert free[0.06] == 1000 - 14
    assert free[0.1] == 1000 - 7
    assert done.server.free_pages == 1000


def test_a_chunk_whose_client_leaves_before_it_has_begun_is_not_computed() -> None:
    done = run(
        Plain(chunk=100), numbered(asked(0.0, 100, 1), asked(0.0, 100, 1, cancel_after_s=0.05), asked(0.0, 60, 1))
    )
    assert ends(done) == [0.1, None, 0.16]
    assert reasons(done) == ["", "CANCELLED_BY_CLIENT", ""]
    assert done.server.free_pages == 1000


def test_what_is_left_of_a_batch_is_computed_without_the_client_who_left() -> None:
    requests = numbered(asked(0.0, 100, 1), asked(0.01, 100, 1, cancel_after_s=0.05), asked(0.01, 60, 1))
    done = run(Plain(), requests)
    assert ends(done) == [0.1, None, 0.16]


@pytest.mark.parametrize(("cancel_after_s", "end_s"), [(0.01, 0.18), (0.05, 0.28)])
def test_in_mixed_batches_what_has_begun_is_computed_and_what_has_not_is_not(
    cancel_after_s: float, end_s: float
) -> None:
    # The worker hears of the first two batches after 20 ms, and begins both; of the third 20 ms after an answer.
    requests = (asked(0.0, 100, 1), asked(0.0, 100, 1, cancel_after_s=cancel_after_s), asked(0.0, 60, 1))
    server = settings(overheads=Overheads(0.0, turnaround_s=0.02, prepare_s=0.0, deliver_s=0.0, handover_s=0.0))
    done = run(Plain(mode=Mode.MIXED, chunk=100), numbered(*requests), server=server)
    assert ends(done) == [0.12, None, end_s]
    assert done.server.free_pages == 1000


def test_a_client_who_leaves_is_heard_of_as_late_as_one_who_comes() -> None:
    done = run(
        Plain(), numbered(asked(1.0, 10, 1000, cancel_after_s=0.5)), server=settings(overheads=replace(OVERHEADS))
    )
    assert done.requests[0].stopped_s == pytest.approx(1.5 + OVERHEADS.arrive_s)


def test_a_client_who_leaves_before_the_last_step_of_its_sequence_has_ended_has_no_last_token() -> None:
    # Steps end at 0.11, 0.12, 0.13 and 0.14; the last one is launched at 0.12.
    done = run(Plain(), numbered(asked(0.0, 100, 5, cancel_after_s=0.125)))
    assert ends(done) == [None]
    assert done.sequences[0].output == 3
    assert done.server.tokens.total == 3
    assert done.server.free_pages == 1000


def test_what_ends_too_early_is_judged_a_failure_with_its_reason() -> None:
    done = run(Plain(), numbered(asked(0.0, 100, 5, deadline_s=0.05), asked(0.0, 10, 5)))
    told = RunSettings("", "", 1.0, 10.0)
    first, second = (record(request, 0.002, told) for request in done.requests)
    assert (first.outcome.value, first.reason) == ("failed", "EXPIRED_RUNNING")
    assert first.done_s == pytest.approx(0.052)
    assert not first.met()
    assert second.met()


# --- priorities -------------------------------------------------------------------------------------------------------


def test_the_batch_takes_the_highest_priority_first() -> None:
    requests = numbered(*(asked(0.0, 10, 20, priority=p) for p in (0, -1, 2, 1)))
    done = run(Plain(), requests, server=settings(max_running=1))
    order = sorted(range(4), key=lambda n: done.sequences[n].end_s or 0.0)
    assert order == [2, 3, 0, 1]


def test_the_lowest_priority_gives_its_pages_back_then_the_youngest() -> None:
    # 12 pages for three sequences of 3 pages each, which grow.
    for priorities, preempted in (((0, 0, 0), {2}), ((0, -1, 0), {1}), ((-1, 0, 0), {0})):
        requests = numbered(*(asked(0.0, 44, 60, priority=p) for p in priorities))
        done = run(Plain(), requests, server=settings(pages=13))
        first = [n for n, s in enumerate(done.sequences) if s.preemptions]
        assert preempted <= set(first)
        assert all(end is not None for end in ends(done))
        latest = max(range(3), key=lambda n: done.sequences[n].end_s or 0.0)
        assert {latest} == preempted


def test_policies_see_priorities_and_deadlines() -> None:
    policy = Plain(chunk=100)
    run(policy, numbered(asked(0.0, 100, 20), asked(0.0, 100, 20, priority=3, deadline_s=0.9)))
    waiting = next(w for s in policy.seen for w in s.waiting if w.sequence == 1)
    assert (waiting.priority, waiting.deadline_s) == (3, 0.9)
    assert {r.priority for s in policy.seen for r in s.running if r.sequence == 1} == {3}


# --- samples ----------------------------------------------------------------------------------------------------------


def test_each_sample_is_a_sequence_with_a_prompt_of_its_own() -> None:
    policy = Plain(chunk=100)
    done = run(policy, numbered(asked(0.0, 100, 3, samples=2), asked(0.0, 50, 1)))
    assert [s.number for s in done.sequences] == [0, 1, 2]
    assert [w.request_id for w in policy.seen[0].waiting] == ["r0", "r0", "r1"]
    assert [s.first_token_s for s in done.sequences] == [0.1, 0.2, 0.25]
    assert done.requests[0].end_s == done.sequences[1].end_s
    assert done.server.tokens.total == 7
    assert done.server.tokens.prompt_in_time == 150


def test_a_request_is_judged_by_its_worst_sample() -> None:
    done = run(Plain(chunk=100), numbered(asked(0.0, 100, 3, samples=2, ttft_slo_s=0.15)))
    assert judged(done.requests[0]).index == 1
    assert not record(done.requests[0], 0.0, RunSettings("", "", 1.0, 10.0)).met()


def test_all_samples_end_with_their_request() -> None:
    done = run(Plain(chunk=100), numbered(asked(0.0, 100, 50, samples=4, cancel_after_s=0.25)))
    assert ends(done) == [None] * 4
    assert done.server.free_pages == 1000
    assert done.server.alive == 0


def test_a_queue_without_room_for_all_samples_refuses() -> None:
    done = run(
        Plain(chunk=100), numbered(asked(0.0, 100, 1), asked(0.0, 100, 1, samples=3)), server=settings(max_waiting=3)
    )
    assert reasons(done) == ["", "QUEUE_FULL"]


# --- plans that hold back or preempt ----------------------------------------------------------------------------------


class Choosing(Plain):
    """Holds back and preempts what two functions of (snapshot, its number) say."""

    def __init__(
        self,
        hold: Callable[[Snapshot, int], Iterable[SequenceId]] = lambda _snapshot, _number: (),
        preempt: Callable[[Snapshot, int], Iterable[SequenceId]] = lambda _snapshot, _number: (),
        shares: Shares | None = None,
        mode: Mode = Mode.SPLIT,
        chunk: int = 1 << 20,
    ) -> None:
        super().__init__(shares, mode, chunk)
        self._hold, self._preempt = hold, preempt

    def plan(self, snapshot: Snapshot) -> Plan:
        plan, number = super().plan(snapshot), len(self.seen)
        preempt = tuple(self._preempt(snapshot, number))
        return replace(plan, hold=frozenset(self._hold(snapshot, number)) - set(preempt), preempt=preempt)


def between(begin_s: float, end_s: float, *numbers: SequenceId) -> Callable[[Snapshot, int], list[SequenceId]]:
    """Says those of the sequences that run, in that time."""
    return lambda snapshot, _: [
        r.sequence for r in snapshot.running if r.sequence in numbers and begin_s <= snapshot.now_s < end_s
    ]


def test_a_sequence_that_is_held_back_is_in_no_step_and_goes_on_where_it_was() -> None:
    policy = Choosing(hold=between(0.2, 0.4, 0))
    done = run(policy, due((0.0, 50, 60), (0.0, 50, 60)))
    plain = run(Plain(), due((0.0, 50, 60), (0.0, 50, 60)))
    assert ends(plain) == [pytest.approx(0.69)] * 2
    # A plan every 20 ms, and two steps are launched ahead: it misses the steps of about 0.2 s.
    assert ends(done)[1] == pytest.approx(0.69)
    late = (done.sequences[0].end_s or 0.0) - 0.69
    assert late == pytest.approx(0.2, abs=0.03)
    assert done.sequences[0].largest_gap_s == pytest.approx(late + 0.01)
    assert done.sequences[0].preemptions == 0
    held = [next(r for r in s.running if r.sequence == 0) for s in policy.seen if 0.25 <= s.now_s < 0.4]
    assert len({(r.output_tokens, r.last_token_s) for r in held}) == 1
    assert {s.pages.free for s in policy.seen if 0.3 <= s.now_s < 0.32} != {1000}


def test_where_all_are_held_back_nothing_is_launched_and_prefill_has_the_device() -> None:
    times = Flat()
    policy = Choosing(hold=between(0.15, 0.5, 0), shares=Shares(50, 50))
    done = run(policy, due((0.0, 50, 30), (0.2, 100, 1)), times)
    assert done.sequences[1].end_s == pytest.approx(0.3)
    assert ("prefill", 128, 0) in times.asked
    assert (done.sequences[0].end_s or 0.0) > 0.5


def test_a_hold_that_is_over_before_a_step_was_launched_costs_nothing() -> None:
    requests = due((0.0, 50, 60))
    plain = run(Plain(), requests)
    # One plan of the review holds it back, and a prompt that comes 1 ms later brings the next one.
    first = next(n for n, s in enumerate(Recording.of(requests), 1) if s.now_s > 0.2)
    policy = Choosing(hold=lambda s, n: [r.sequence for r in s.running] if n == first else ())
    done = run(policy, due((0.0, 50, 60), (0.2011, 1, 1)))
    assert abs((ends(done)[0] or 0.0) - (ends(plain)[0] or 0.0)) < 0.04


class Recording:
    @staticmethod
    def of(requests: list[TraceArrival]) -> list[Snapshot]:
        policy = Plain()
        run(policy, requests)
        return policy.seen


def test_what_is_ready_and_held_back_does_not_join_the_batch() -> None:
    done = run(Choosing(hold=between(0.0, 0.3, 0)), due((0.0, 50, 20)))
    assert ends(done) == [pytest.approx(0.3 + 0.19, abs=0.03)]


def test_a_sequence_that_is_preempted_waits_with_its_output_and_is_computed_again() -> None:
    policy = Choosing(preempt=lambda s, _: [0] if 0.2 <= s.now_s < 0.22 and s.running else ())
    done = run(policy, due((0.0, 50, 60), (0.0, 50, 60)))
    assert [s.preemptions for s in done.sequences] == [1, 0]
    at = next(n for n, s in enumerate(policy.seen) if s.now_s >= 0.2)
    before = policy.seen[at].running[0]
    (again,) = policy.seen[at + 1].waiting
    assert (before.sequence, again.sequence) == (0, 0)
    assert again.output_tokens == before.output_tokens
    assert (again.prompt_tokens, again.computed_tokens) == (50 + before.output_tokens, 0)
    assert [s.output for s in done.sequences] == [60, 60]
    assert done.server.free_pages == 1000


def test_what_is_ready_can_be_preempted() -> None:
    policy = Choosing(
        hold=between(0.0, 0.2, 0), preempt=lambda s, _: [0] if 0.1 <= s.now_s < 0.12 and s.running else ()
    )
    done = run(policy, due((0.0, 50, 20)))
    assert done.sequences[0].preemptions == 1
    assert done.sequences[0].output == 20


# --- all of it together -----------------------------------------------------------------------------------------------


def wild(seed: int, count: int = 60) -> list[TraceArrival]:
    draw = random.Random(seed)
    at = 0.0
    found = []
    for _ in range(count):
        at += draw.expovariate(20.0)
        found.append(
            asked(
                at,
                draw.randint(1, 600),
                draw.randint(1, 120),
                priority=draw.choice((0, 0, 1, -1)),
                deadline_s=draw.choice((None, None, draw.uniform(0.0, 2.0))),
                cancel_after_s=draw.choice((None, None, draw.uniform(0.0, 2.0))),
                samples=draw.choice((1, 1, 3)),
            )
        )
    return numbered(*found)


class Whimsical(Choosing):
    """Holds back and preempts at random, in another mode with each plan or in one for all."""

    def __init__(self, seed: int, mode: Mode | None) -> None:
        draw = random.Random(seed)
        super().__init__(
            hold=lambda s, _: [r.sequence for r in s.running if draw.random() < 0.3],
            preempt=lambda s, _: [r.sequence for r in s.running if draw.random() < 0.02],
            shares=Shares(50, 50),
            chunk=300,
        )
        self._draw, self._one = draw, mode

    def plan(self, snapshot: Snapshot) -> Plan:
        self._mode = self._one or self._draw.choice(list(Mode))
        return super().plan(snapshot)


POLICIES: dict[str, Callable[[], Policy]] = {
    "fcfs": Fcfs,
    "turns": lambda: Static(Static.Options(mode="turns", chunk=256)),
    "adaptive": Adaptive,
    "chunked": lambda: Chunked(Chunked.Options(budget=200)),
    "whimsical": lambda: Whimsical(1, None),
    "whimsical split": lambda: Whimsical(2, Mode.SPLIT),
    "whimsical turns": lambda: Whimsical(3, Mode.TURNS),
    "whimsical mixed": lambda: Whimsical(4, Mode.MIXED),
}


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize("pages", [60, 150, 5000])
def test_whatever_happens_all_ends_and_every_token_and_page_is_counted(name: str, pages: int) -> None:
    policy = POLICIES[name]()
    done = run(policy, wild(pages), Flat(0.005, 5e-5), settings(pages=pages, overheads=OVERHEADS))
    assert not done.failures
    server = done.server
    assert server.free_pages == pages
    assert (server.alive, server.waiting, server.prefilling, server.decoding) == (0, 0, 0, 0)
    for request in done.requests:
        assert request.over
        assert (request.end_s is None) == bool(request.reason)
    for s in done.sequences:
        if s.end_s is not None:
            assert s.output == s.output_len
            assert s.request.arrival_s < (s.first_token_s or 0.0) <= s.last_token_s == s.end_s
    assert server.tokens.total == sum(s.output for s in done.sequences)
    gaps = server.gaps.distribution()
    assert gaps is not None
    assert gaps.count == sum(max(0, s.output - 1) for s in done.sequences)
    spans = sum(s.last_token_s - (s.first_token_s or 0.0) for s in done.sequences if s.first_token_s is not None)
    assert gaps.mean * gaps.count == pytest.approx(spans)
    assert max(s.largest_gap_s for s in done.sequences) == pytest.approx(gaps.max)
    if isinstance(policy, Choosing):
        for snapshot in policy.seen:
            for r in snapshot.running:
                assert 1 <= r.output_tokens < r.max_tokens
                assert r.first_token_s <= r.last_token_s <= snapshot.now_s


@pytest.mark.parametrize("name", ["adaptive", "whimsical"])
def test_twice_the_same(name: str) -> None:
    one, two = (
        run(POLICIES[name](), wild(3), Flat(0.005, 5e-5), settings(pages=150, overheads=OVERHEADS)) for _ in range(2)
    )
    assert ends(one) == ends(two)
    assert one.timeline == two.timeline
