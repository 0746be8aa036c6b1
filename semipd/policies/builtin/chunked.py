"""One mixed batch of decode tokens and prompt chunks under a token budget: Sarathi-Serve, and the way of vLLM."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar

from semipd.core.partition import FULL, Mode
from semipd.core.plan import Order, OrderInput, PlaceInput, Plan
from semipd.core.snapshot import Snapshot
from semipd.policies.contract import Policy
from semipd.policies.options import Options
from semipd.policies.toolkit.ordering import Prompts
from semipd.policies.toolkit.running_batch import joining

BUDGET = 512


class Chunked(Policy):
    """Mixed batches under a token budget (Sarathi-Serve): each step takes prompt chunks along with the decode tokens.

    After Agrawal et al., "Taming Throughput-Latency Tradeoff in LLM Inference with Sarathi-Serve" (OSDI 2024): decodes
    are never paused for a prompt (stall-free batching, section 4.2, Algorithm 3), and prompts are cut so that no step
    has more than `budget` tokens (chunked prefills, section 4.1), which bounds its time (section 4.3).

    Options: `budget`, tokens a step: each running sequence counts one, the rest is prompt chunks (default 512). Where
    as many sequences run, prompts wait. `order`, `fcfs` (the default, as vLLM's) or `slack`, see
    semipd.policies.toolkit.deadlines.

    An engine that makes no mixed batches (`limits.modes`; partition back end mps) gets the same chunks beside decode,
    each phase on the whole device, (100, 100).
    """

    name: ClassVar[str] = "chunked"

    def __init__(self, options: Mapping[str, str]) -> None:
        super().__init__(options)
        read = Options(self.name, options)
        self._budget = read.integer("budget", default=BUDGET, low=1)
        self._prompts = Prompts(read, order="fcfs", chunk=0)
        read.finish()

    def order(self, given: OrderInput) -> Order:
        return self._prompts.order(given.snapshot)

    def place(self, given: PlaceInput) -> Plan:
        snapshot = given.snapshot
        mode = Mode.MIXED if Mode.MIXED in snapshot.limits.modes else Mode.SPLIT
        room = min(self._budget - _rows(snapshot), snapshot.limits.max_batch_tokens)
        if room <= 0:
            return Plan(shares=FULL, mode=mode)
        # With the room as the engine's limit not even a tiny remainder comes on top of it.
        bounded = replace(snapshot, limits=replace(snapshot.limits, max_batch_tokens=room))
        return Plan(prefill=self._prompts.fill(bounded, given.order), shares=FULL, mode=mode)


def _rows(snapshot: Snapshot) -> int:
    """Decode tokens of the step that the batch will be in: who runs, and whose prompt ends in the batches before it."""
    return min(len(snapshot.running) + len(joining(snapshot)), snapshot.limits.max_running)
