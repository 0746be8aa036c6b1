"""Fixed shares."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from semipd.core.partition import Mode, Shares
from semipd.core.plan import Order, OrderInput, PlaceInput, Plan
from semipd.policies.contract import Policy
from semipd.policies.options import Options
from semipd.policies.toolkit.ordering import Prompts

CHUNK = 512
TURN_TOKENS = 1024


class Static(Policy):
    """Fixed shares (x, y) of the device; prompts by deadline slack, in bounded chunks.

    Options: `prefill` and `decode`, percent of the device (default 50 and 50); `chunk`, the most prompt tokens in one
    prefill batch (default 512: hardly slower than larger ones on an H200, and no short prompt waits long for a batch to
    end); `order`, `slack` (the default, see policies.toolkit.deadlines) or `fcfs`; `mode`, `split` (the default) or
    `turns`: where the engine can, each phase computes on the whole device while both have work, one batch and one step
    after the other. Turns do more where prompts are many and tokens are not in a hurry; a split where they are.
    `step_tokens`: in turns, prompt tokens that may be computed between two steps, as one batch always may (default
    1024).
    """

    name: ClassVar[str] = "static"

    def __init__(self, options: Mapping[str, str]) -> None:
        super().__init__(options)
        read = Options(self.name, options)
        prefill = read.number("prefill", default=50.0, above=0.0, high=100.0)
        decode = read.number("decode", default=50.0, above=0.0, high=100.0)
        self._prompts = Prompts(read, order="slack", chunk=CHUNK)
        self._turns = read.choice("mode", default="split", among=("split", "turns")) == "turns"
        self._step_tokens = read.integer("step_tokens", default=TURN_TOKENS, low=1)
        read.finish()
        self._shares = Shares(prefill, decode)

    def order(self, given: OrderInput) -> Order:
        return self._prompts.order(given.snapshot)

    def place(self, given: PlaceInput) -> Plan:
        turns = self._turns and Mode.TURNS in given.snapshot.limits.modes
        return Plan(
            prefill=self._prompts.fill(given.snapshot, given.order),
            shares=self._shares,
            mode=Mode.TURNS if turns else Mode.SPLIT,
            step_tokens=self._step_tokens,
        )
