"""Every built-in policy passes the kit that authors use, and policies with faults do not."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence

import pytest

from semipd.core.partition import FULL
from semipd.core.plan import Chunk, Plan
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
    Broken,
    check_budget,
    check_moments,
    check_no_starvation,
    check_policy,
    check_worlds,
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
    check_policy(MAKERS[name], budget_s=0.006)


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
        (check_worlds, ForgetsTheLong, "never end"),
        (check_worlds, Draws, "did not plan the same"),
        (check_no_starvation, ShortestFirst, "waits for ever"),
        (check_budget, Slow, "ms of CPU time"),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_a_fault_is_found_and_named(
    check: Callable[[Callable[[], Policy]], None], flawed: Callable[[], Policy], said: str
) -> None:
    with pytest.raises(Broken, match=said):
        check(flawed)
