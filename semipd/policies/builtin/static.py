"""Fixed shares."""

from __future__ import annotations

from typing import ClassVar, Literal

from semipd.core.partition import Mode, Shares
from semipd.core.plan import Plan
from semipd.core.snapshot import Snapshot
from semipd.policies.contract import Policy
from semipd.policies.policy_options import PolicyOptions, option
from semipd.policies.toolkit.ordering import OrderName, order_option, prompt_order


class StaticOptions(PolicyOptions):
    prefill: float = option(50.0, "Prefill's share of the device.", unit="%", above=0, high=100)
    decode: float = option(50.0, "Decode's share of the device.", unit="%", above=0, high=100)
    # 512 is hardly slower than larger batches on an H200, and no short prompt waits long for a batch to end.
    chunk: int = option(512, "Most prompt tokens in one prefill batch; longer prompts are cut.", unit="tokens", low=1)
    order: OrderName = order_option("slack")
    mode: Literal["split", "turns"] = option(
        "split",
        "split: the phases compute side by side, each on its share. turns: while both have work, each in turn computes "
        "on the whole device, one batch and one step after the other.",
    )
    step_tokens: int = option(
        1024,
        "In turns, prompt tokens that may be computed between two decode steps; one batch always may.",
        unit="tokens",
        low=1,
    )


class Static(Policy):
    """Fixed shares (x, y) of the device, or turns; prompts by deadline slack, in bounded chunks.

    Turns do more where prompts are many and tokens are not in a hurry; a split where they are.
    """

    name: ClassVar[str] = "static"
    Options = StaticOptions
    options: StaticOptions

    def __init__(self, options: StaticOptions | None = None) -> None:
        super().__init__(options)
        self._order = prompt_order(self.options.order)
        self._shares = Shares(self.options.prefill, self.options.decode)
        self._mode = Mode(self.options.mode)

    def plan(self, snapshot: Snapshot) -> Plan:
        return Plan(
            prefill=self._order.ranked(snapshot).take(self.options.chunk),
            shares=self._shares,
            mode=self._mode,
            step_tokens=self.options.step_tokens,
        )
