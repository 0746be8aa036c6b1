"""First come, first served; no partition."""

from __future__ import annotations

from typing import ClassVar

from semipd.core.partition import FULL
from semipd.core.plan import Plan
from semipd.core.snapshot import Snapshot
from semipd.policies.contract import Policy
from semipd.policies.policy_options import PolicyOptions, option
from semipd.policies.toolkit.ordering import OrderName, order_option, prompt_order


class FcfsOptions(PolicyOptions):
    chunk: int | None = option(
        None,
        "Most prompt tokens in one prefill batch; longer prompts are cut. Not given: the engine's limit.",
        unit="tokens",
        low=1,
    )
    order: OrderName = order_option("fcfs")


class Fcfs(Policy):
    """First come, first served; each phase may use the whole device: the paper's (100, 100)."""

    name: ClassVar[str] = "fcfs"
    Options = FcfsOptions
    options: FcfsOptions

    def __init__(self, options: FcfsOptions | None = None) -> None:
        super().__init__(options)
        self._order = prompt_order(self.options.order)

    def plan(self, snapshot: Snapshot) -> Plan:
        return Plan(prefill=self._order.ranked(snapshot).take(self.options.chunk), shares=FULL)
