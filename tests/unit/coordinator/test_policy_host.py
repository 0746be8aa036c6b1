"""A policy that raises, loops or plans nonsense is replaced, and nobody is hurt."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from contextlib import suppress

import pytest

from semipd.coordinator.policy_host import PolicyOverrun, alarm
from semipd.core.partition import Mode
from semipd.core.plan import Admission, Chunk, Plan
from semipd.core.snapshot import Snapshot, WaitingSequence
from semipd.policies import Policy, fill_batch
from support.stage import Stage


class Scripted(Policy):
    """Plans and admits as the test says."""

    name = "scripted"

    def __init__(self, plan: Callable[[Snapshot], Plan], admit: Admission | None = None) -> None:
        super().__init__()
        self._plan = plan
        self._admit = admit or Admission()

    def admit(self, snapshot: Snapshot, sequence: WaitingSequence) -> Admission:
        return self._admit

    def plan(self, snapshot: Snapshot) -> Plan:
        return self._plan(snapshot)


def raises(snapshot: Snapshot) -> Plan:
    raise KeyError("a bug")


def loops(snapshot: Snapshot) -> Plan:
    while True:
        try:
            sum(range(1000))
        except Exception:
            continue


def sleeps(snapshot: Snapshot) -> Plan:
    while True:
        signal.pause()


NONSENSE = {
    "unknown sequence": Plan(prefill=(Chunk(999, 1),)),
    "more tokens than are left": Plan(prefill=(Chunk(0, 21),)),
    "no tokens": Plan(prefill=(Chunk(0, 0),)),
    "twice": Plan(prefill=(Chunk(0, 5), Chunk(0, 5))),
    "beyond the batch": Plan(prefill=(Chunk(0, 10_000),)),
    "a sequence held that does not run": Plan(hold=frozenset({0})),
    "a sequence preempted that does not run": Plan(preempt=(999,)),
    "no decode": Plan(decode_limit=0),
    "no prompt tokens a step": Plan(step_tokens=0),
    "not a plan": "nonsense",
}


@pytest.mark.parametrize(
    "plan",
    [raises, loops, sleeps, *[lambda _snapshot, p=p: p for p in NONSENSE.values()]],
    ids=["raises", "loops", "sleeps", *NONSENSE],
)
def test_a_bad_policy_is_replaced_by_the_fallback_and_the_request_runs(plan: Callable[[Snapshot], Plan]) -> None:
    stage = Stage(policy=Scripted(plan))
    stage.running(1)
    assert stage.coordinator.host.name == "fcfs"
    assert [name for name, _why in stage.failures] == ["scripted"]
    assert stage.tokens(1) == [7]


def test_a_plan_for_more_pages_than_are_free_is_refused() -> None:
    def greedy(snapshot: Snapshot) -> Plan:
        return Plan(prefill=tuple(Chunk(w.sequence, w.remaining_tokens) for w in snapshot.waiting))

    stage = Stage(pages=2, policy=Scripted(greedy))
    stage.submit(1, prompt=48)
    assert [why for _name, why in stage.failures] == ["the batch needs 3 pages and 2 are free"]


def test_a_refusal_by_the_policy_reaches_the_client_with_its_delay() -> None:
    refusal = Admission(accept=False, why="no hope before 2 s", retry_after_s=2.0)
    stage = Stage(policy=Scripted(lambda _snapshot: Plan(), refusal))
    stage.submit(1)
    (ended,) = [m.ended for m in stage.transport.gateway if m.HasField("ended")]
    assert (ended.failure.reason, ended.failure.retry_after_s) == ("DEADLINE_UNMEETABLE", 2.0)
    assert "no hope" in ended.failure.message


def test_a_plan_that_keeps_the_contract_is_followed() -> None:
    def five(snapshot: Snapshot) -> Plan:
        free = [w for w in snapshot.waiting if not w.in_flight_tokens]
        return Plan(prefill=tuple(Chunk(w.sequence, min(5, w.remaining_tokens)) for w in free[:1]))

    stage = Stage(policy=Scripted(five))
    stage.submit(1)
    (batch,) = stage.batches()
    assert len(batch.chunks[0].tokens) == 5
    assert stage.failures == []


def test_a_mode_that_the_engine_has_not_becomes_a_split() -> None:
    stage = Stage(policy=Scripted(lambda snapshot: Plan(fill_batch(snapshot, snapshot.waiting), mode=Mode.TURNS)))
    stage.running(1)
    assert stage.failures == []
    assert stage.coordinator.snapshot().mode is Mode.SPLIT
    assert stage.tokens(1) == [7]


BUDGET_S = 0.01


class Readings:
    """A clock that reads 0 s once and `later` s from then on."""

    def __init__(self, later: float) -> None:
        self._later = later
        self.count = 0

    def __call__(self) -> float:
        self.count += 1
        return 0.0 if self.count == 1 else self._later


def stands_still() -> float:
    return 0.0


def compute() -> None:
    while True:
        sum(range(1000))


def wait() -> None:
    while True:
        signal.pause()


def swallow_twice() -> None:
    for _ in range(2):
        with suppress(PolicyOverrun):
            wait()
    wait()


def test_time_is_over_for_who_has_computed_for_the_budget() -> None:
    with pytest.raises(PolicyOverrun, match="computed for 10 ms"), alarm(BUDGET_S, passed=stands_still):
        compute()


def test_time_is_over_for_who_waits_once_twice_the_budget_has_passed() -> None:
    began = time.monotonic()
    with pytest.raises(PolicyOverrun, match="did not answer within 20 ms"), alarm(BUDGET_S, computed=stands_still):
        wait()
    assert time.monotonic() - began >= 2 * BUDGET_S


def test_who_is_off_the_cpu_for_less_than_twice_the_budget_is_not_at_fault() -> None:
    passed = Readings(1.9 * BUDGET_S)
    with alarm(BUDGET_S, passed=passed):
        while passed.count < 4:  # until it was looked at three times
            signal.pause()


def test_who_swallows_the_end_is_ended_again() -> None:
    with pytest.raises(PolicyOverrun), alarm(BUDGET_S):
        swallow_twice()


@pytest.mark.parametrize("body", [compute, lambda: None], ids=["overruns", "in time"])
def test_nothing_rings_afterwards(body: Callable[[], None]) -> None:
    before = signal.getsignal(signal.SIGALRM)
    with suppress(PolicyOverrun), alarm(BUDGET_S, passed=stands_still):
        body()
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
    assert signal.getsignal(signal.SIGALRM) is before
