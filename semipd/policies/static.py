"""Fixed shares."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from semipd.core.partition import Shares
from semipd.core.plan import Order, OrderInput, PlaceInput, Plan
from semipd.policies.contract import Policy
from semipd.policies.fcfs import by_priority_then_arrival
from semipd.policies.filling import fill_batch
from semipd.policies.options import Options


class Static(Policy):
    """First come, first served, on fixed shares (x, y) of the device.

    Options: `prefill` and `decode`, percent of the device (default 50 and 50); `batch_tokens` as for `fcfs`.
    """

    name: ClassVar[str] = "static"

    def __init__(self, options: Mapping[str, str]) -> None:
        super().__init__(options)
        read = Options(self.name, options)
        prefill = read.number("prefill", default=50.0, above=0.0, high=100.0)
        decode = read.number("decode", default=50.0, above=0.0, high=100.0)
        self._batch_tokens = read.integer("batch_tokens", default=2**31 - 1, low=1)
        read.finish()
        self._shares = Shares(prefill, decode)

    def order(self, given: OrderInput) -> Order:
        return Order(by_priority_then_arrival(given.snapshot.waiting))

    def place(self, given: PlaceInput) -> Plan:
        return Plan(prefill=fill_batch(given.snapshot, given.order, self._batch_tokens), shares=self._shares)
