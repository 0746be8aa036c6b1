"""Every built-in policy passes the kit that authors use, and policies with faults do not."""

from __future__ import annotations

import random
import time
from collections.abc import Callable

import pytest

from semipd.core.plan import Chunk, Order, OrderInput, PlaceInput, Plan
from semipd.policies.builtin.adaptive.policy import Adaptive
from semipd.policies.builtin.chunked import Chunked
from semipd.policies.builtin.fcfs import Fcfs
from semipd.policies.builtin.semi_pd import SemiPd
from semipd.policies.builtin.static import Static
from semipd.policies.contract import Policy
from semipd.policies.testing import (
    Broken,
    check_budget,
    check_moments,
    check_no_starvation,
    check_policy,
    check_worlds,
)
from semipd.policies.toolkit.batching import fill_batch
from semipd.policies.toolkit.ordering import by_priority_then_arrival

MAKERS: dict[str, Callable[[], Policy]] = {
    "fcfs": lambda: Fcfs({}),
    "fcfs in chunks": lambda: Fcfs({"chunk": "512"}),
    "static": lambda: Static({}),
    "static by arrival": lambda: Static({"order": "fcfs", "prefill": "70", "decode": "30"}),
    "semi-pd": lambda: SemiPd({"window": "20"}),
    "chunked": lambda: Chunked({}),
    "chunked by slack": lambda: Chunked({"order": "slack", "budget": "2048"}),
    "adaptive": lambda: Adaptive({}),
}


@pytest.mark.parametrize("name", MAKERS)
def test_built_in_policies_keep_the_contract(name: str) -> None:
    check_policy(MAKERS[name], budget_s=0.006)


class Flawed(Fcfs):
    """Right until a test breaks it."""

    name = "flawed"

    def __init__(self) -> None:
        super().__init__({})


class PlansAbsentPages(Flawed):
    def place(self, given: PlaceInput) -> Plan:
        order = given.order.sequences
        waiting = {w.sequence: w for w in given.snapshot.waiting}
        free = [waiting[n] for n in order if not waiting[n].in_flight_tokens and waiting[n].remaining_tokens]
        most = given.snapshot.limits.max_batch_tokens
        return Plan(prefill=tuple(Chunk(w.sequence, min(w.remaining_tokens, most)) for w in free[:1]))


class PlansWhatIsInFlight(Flawed):
    def place(self, given: PlaceInput) -> Plan:
        return Plan(prefill=tuple(Chunk(w.sequence, 1) for w in given.snapshot.waiting if w.in_flight_tokens))


class ForgetsTheLong(Flawed):
    def order(self, given: OrderInput) -> Order:
        return Order(tuple(w.sequence for w in given.snapshot.waiting if w.prompt_tokens < 1500))


class ShortestFirst(Flawed):
    def order(self, given: OrderInput) -> Order:
        by_length = sorted(given.snapshot.waiting, key=lambda w: (w.remaining_tokens, w.sequence))
        return Order(tuple(w.sequence for w in by_length))


class Draws(Flawed):
    def order(self, given: OrderInput) -> Order:
        found = list(by_priority_then_arrival(given.snapshot.waiting))
        random.shuffle(found)
        return Order(tuple(found))

    def place(self, given: PlaceInput) -> Plan:
        return Plan(prefill=fill_batch(given.snapshot, given.order, 64))


class NamesTwice(Flawed):
    def order(self, given: OrderInput) -> Order:
        return Order(by_priority_then_arrival(given.snapshot.waiting) * 2)


class Slow(Flawed):
    def order(self, given: OrderInput) -> Order:
        until = time.thread_time() + 0.02
        while time.thread_time() < until:
            pass
        return super().order(given)


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
