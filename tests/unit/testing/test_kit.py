"""Every built-in policy passes the kit that authors use, and policies with faults do not."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest

from semipd.core.partition import FULL, Mode
from semipd.core.plan import Chunk, Plan
from semipd.core.request import Slo
from semipd.core.snapshot import Snapshot, WaitingSequence
from semipd.policies.builtin.adaptive.policy import Adaptive
from semipd.policies.builtin.chunked import Chunked
from semipd.policies.builtin.fcfs import Fcfs
from semipd.policies.builtin.semi_pd import SemiPd
from semipd.policies.builtin.static import Static
from semipd.policies.contract import Policy
from semipd.policies.toolkit.batching import fill_batch
from semipd.policies.toolkit.ordering import by_priority_then_arrival
from semipd.testing import (
    Arrival,
    Broken,
    Settings,
    check_budget,
    check_moments,
    check_no_starvation,
    check_policy,
    check_worlds,
    replay,
)

MAKERS: dict[str, Callable[[], Policy]] = {
    "fcfs": Fcfs,
    "fcfs in chunks": lambda: Fcfs(Fcfs.Options(chunk=512)),
    "static": Static,
    "static by arrival": lambda: Static(Static.Options(order="fcfs", prefill=70, decode=30)),
    "semi-pd": lambda: SemiPd(SemiPd.Options(window=20)),
    "chunked": Chunked,
    "chunked by slack": lambda: Chunked(Chunked.Options(order="slack", budget=2048)),
    "adaptive": Adaptive,
}


@pytest.mark.parametrize("name", MAKERS)
def test_built_in_policies_keep_the_contract(name: str) -> None:
    check_policy(MAKERS[name])


class Flawed(Policy):
    """Right until a test breaks it."""

    name = "flawed"

    def order(self, waiting: Sequence[WaitingSequence]) -> Sequence[WaitingSequence]:
        return by_priority_then_arrival(waiting)

    def plan(self, snapshot: Snapshot) -> Plan:
        return Plan(prefill=fill_batch(snapshot, self.order(snapshot.waiting)), shares=FULL)


class PlansAbsentPages(Flawed):
    def plan(self, snapshot: Snapshot) -> Plan:
        free = [w for w in self.order(snapshot.waiting) if not w.in_flight_tokens and w.remaining_tokens]
        most = snapshot.limits.max_batch_tokens
        return Plan(prefill=tuple(Chunk(w.sequence, min(w.remaining_tokens, most)) for w in free[:1]))


class PlansWhatIsInFlight(Flawed):
    def plan(self, snapshot: Snapshot) -> Plan:
        return Plan(prefill=tuple(Chunk(w.sequence, 1) for w in snapshot.waiting if w.in_flight_tokens))


class ForgetsTheLong(Flawed):
    def order(self, waiting: Sequence[WaitingSequence]) -> Sequence[WaitingSequence]:
        return [w for w in waiting if w.prompt_tokens < 1500]


class ShortestFirst(Flawed):
    def order(self, waiting: Sequence[WaitingSequence]) -> Sequence[WaitingSequence]:
        return sorted(waiting, key=lambda w: (w.remaining_tokens, w.sequence))


class Draws(Flawed):
    def plan(self, snapshot: Snapshot) -> Plan:
        found = list(self.order(snapshot.waiting))
        random.shuffle(found)
        return Plan(prefill=fill_batch(snapshot, found, 64))


class NamesTwice(Flawed):
    def order(self, waiting: Sequence[WaitingSequence]) -> Sequence[WaitingSequence]:
        return by_priority_then_arrival(waiting) * 2


class TurnsWithoutEnd(Flawed):
    """Prefill keeps the device while prompts come."""

    def plan(self, snapshot: Snapshot) -> Plan:
        chunks = fill_batch(snapshot, self.order(snapshot.waiting), 512)
        return Plan(prefill=chunks, mode=Mode.TURNS, step_tokens=10**9)


class TurnsForNothing(Flawed):
    def plan(self, snapshot: Snapshot) -> Plan:
        return replace(super().plan(snapshot), mode=Mode.TURNS, step_tokens=0)


class MixesTooMuch(Flawed):
    """Thinks that what one step can't take along may be of any size."""

    def plan(self, snapshot: Snapshot) -> Plan:
        free = [w for w in self.order(snapshot.waiting) if not w.in_flight_tokens and w.remaining_tokens]
        chunks = [Chunk(w.sequence, w.remaining_tokens) for w in free]
        pages = sum(snapshot.pages.pages_for(chunk.tokens) for chunk in chunks)
        if pages > snapshot.pages.free:
            return super().plan(snapshot)
        return Plan(prefill=tuple(chunks), mode=Mode.MIXED, step_tokens=512)


class DrawsItsMode(Flawed):
    def plan(self, snapshot: Snapshot) -> Plan:
        return replace(super().plan(snapshot), mode=random.choice((Mode.TURNS, Mode.MIXED)))


class HoldsForEver(Flawed):
    """Thinks that a sequence which names a TPOT is not worth more than five tokens."""

    def plan(self, snapshot: Snapshot) -> Plan:
        late = [r.sequence for r in snapshot.running if r.slo.tpot_s is not None and r.output_tokens > 5]
        return replace(super().plan(snapshot), hold=frozenset(late))


class HoldsWhatWaits(Flawed):
    def plan(self, snapshot: Snapshot) -> Plan:
        return replace(super().plan(snapshot), hold=frozenset(w.sequence for w in snapshot.waiting[:1]))


class PreemptsWhatItHolds(Flawed):
    def plan(self, snapshot: Snapshot) -> Plan:
        first = tuple(r.sequence for r in snapshot.running[:1])
        return replace(super().plan(snapshot), hold=frozenset(first), preempt=first)


class PreemptsTwice(Flawed):
    def plan(self, snapshot: Snapshot) -> Plan:
        return replace(super().plan(snapshot), preempt=tuple(r.sequence for r in snapshot.running[:1]) * 2)


class Slow(Flawed):
    def order(self, waiting: Sequence[WaitingSequence]) -> Sequence[WaitingSequence]:
        until = time.thread_time() + 0.02
        while time.thread_time() < until:
            pass
        return super().order(waiting)


@pytest.mark.parametrize(
    ("check", "flawed", "said"),
    [
        (check_moments, PlansAbsentPages, "pages and 0 are free"),
        (check_moments, PlansWhatIsInFlight, "with the prefill worker"),
        (check_moments, NamesTwice, "2 times"),
        (check_moments, TurnsForNothing, "step_tokens is 0"),
        (check_moments, MixesTooMuch, "prompt tokens in one batch"),
        (check_moments, HoldsWhatWaits, "hold names sequence .*, which does not run"),
        (check_moments, PreemptsWhatItHolds, "is to be held back and to be preempted"),
        (check_moments, PreemptsTwice, "preempt names sequence .* 2 times"),
        (check_worlds, ForgetsTheLong, "never end"),
        (check_worlds, HoldsForEver, "never end"),
        (check_worlds, DrawsItsMode, "did not plan the same"),
        (check_worlds, Draws, "did not plan the same"),
        (check_no_starvation, ShortestFirst, "a prompt of 2000 tokens waits for ever"),
        (check_no_starvation, TurnsWithoutEnd, "all modes: a sequence that decodes waits for ever"),
        (check_budget, Slow, "ms of CPU time"),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_a_fault_is_found_and_named(
    check: Callable[[Callable[[], Policy]], None], flawed: Callable[[], Policy], said: str
) -> None:
    with pytest.raises(Broken, match=said):
        check(flawed)


def test_the_former_name_of_the_kit_works_and_warns_once() -> None:
    code = "import semipd.policies.testing as a, semipd.testing as b; assert a.check_policy is b.check_policy"
    done = subprocess.run([sys.executable, "-Wdefault", "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.count("DeprecationWarning: semipd.policies.testing is called semipd.testing now") == 1


def test_several_samples_and_clients_that_leave_are_told_apart() -> None:
    arrivals = [
        Arrival(0.0, 400, 20, samples=2),
        Arrival(0.0, 400, 200, cancel_after_s=0.2),
        Arrival(0.0, 400, 200, deadline_s=0.2),
        Arrival(0.0, 40, 5, Slo(ttft_s=0.001)),
    ]
    twice, left, expired, late = replay(Fcfs(), arrivals, Settings(pages=1000))
    assert (twice.output, twice.in_time, twice.over) == (40, True, True)
    assert (left.cancelled, left.expired, left.end_s) == (True, False, None)
    assert (expired.cancelled, expired.expired, expired.end_s) == (False, True, None)
    assert 0 < expired.output < 200
    assert late.end_s is not None
    assert not late.in_time
