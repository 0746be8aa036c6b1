"""First come, first served; no partition."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from semipd.core.partition import FULL
from semipd.core.plan import Order, OrderInput, PlaceInput, Plan
from semipd.policies.contract import Policy
from semipd.policies.options import Options
from semipd.policies.toolkit.ordering import UNBOUNDED, Prompts


class Fcfs(Policy):
    """First come, first served; each phase may use the whole device: the paper's (100, 100).

    Options: `chunk`, the most prompt tokens in one prefill batch, beyond which prompts are cut (default: the engine's
    limit); `order`, `fcfs` (the default) or `slack`: by deadline slack, see semipd.policies.toolkit.deadlines.
    """

    name: ClassVar[str] = "fcfs"

    def __init__(self, options: Mapping[str, str]) -> None:
        super().__init__(options)
        read = Options(self.name, options)
        self._prompts = Prompts(read, order="fcfs", chunk=UNBOUNDED)
        read.finish()

    def order(self, given: OrderInput) -> Order:
        return self._prompts.order(given.snapshot)

    def place(self, given: PlaceInput) -> Plan:
        return Plan(prefill=self._prompts.fill(given.snapshot, given.order), shares=FULL)
