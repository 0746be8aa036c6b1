"""First come, first served; no partition."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from semipd.core.partition import FULL
from semipd.core.plan import Order, OrderInput, PlaceInput, Plan
from semipd.core.snapshot import SequenceId, WaitingSequence
from semipd.policies.contract import Policy
from semipd.policies.filling import fill_batch
from semipd.policies.options import Options


class Fcfs(Policy):
    """First come, first served; each phase may use the whole device: the paper's (100, 100).

    Options: `batch_tokens`, the most prompt tokens in one prefill batch (default: the engine's limit).
    """

    name: ClassVar[str] = "fcfs"

    def __init__(self, options: Mapping[str, str]) -> None:
        super().__init__(options)
        read = Options(self.name, options)
        self._batch_tokens = read.integer("batch_tokens", default=2**31 - 1, low=1)
        read.finish()

    def order(self, given: OrderInput) -> Order:
        return Order(by_priority_then_arrival(given.snapshot.waiting))

    def place(self, given: PlaceInput) -> Plan:
        return Plan(prefill=fill_batch(given.snapshot, given.order, self._batch_tokens), shares=FULL)


def by_priority_then_arrival(waiting: tuple[WaitingSequence, ...]) -> tuple[SequenceId, ...]:
    """Higher priority first; within one, the order of arrival (sequence numbers rise with it)."""
    return tuple(w.sequence for w in sorted(waiting, key=lambda w: (-w.priority, w.sequence)))
