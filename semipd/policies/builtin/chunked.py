"""One mixed batch of decode tokens and prompt chunks under a token budget: Sarathi-Serve, and the way of vLLM."""

from __future__ import annotations

from typing import ClassVar

from semipd.core.partition import FULL, Mode
from semipd.core.plan import Plan
from semipd.core.snapshot import Snapshot
from semipd.policies.contract import Policy
from semipd.policies.policy_options import PolicyOptions, option
from semipd.policies.toolkit.ordering import OrderName, order_option, prompt_order
from semipd.policies.toolkit.running_batch import joining


class ChunkedOptions(PolicyOptions):
    budget: int = option(
        512,
        "Tokens in one step: each running sequence counts one, the rest is prompt chunks. Where as many sequences run, "
        "prompts wait.",
        unit="tokens",
        low=1,
    )
    order: OrderName = order_option("fcfs")  # as vLLM's


class Chunked(Policy):
    """Mixed batches under a token budget (Sarathi-Serve): each step takes prompt chunks along with the decode tokens.

    After Agrawal et al., "Taming Throughput-Latency Tradeoff in LLM Inference with Sarathi-Serve" (OSDI 2024): decodes
    are never paused for a prompt (stall-free batching, section 4.2, Algorithm 3), and prompts are cut so that no step
    has more than `budget` tokens (chunked prefills, section 4.1), which bounds its time (section 4.3).

    An engine that makes no mixed batches (`limits.modes`; partition back end mps) gets the same chunks beside decode,
    each phase on the whole device, (100, 100).
    """

    name: ClassVar[str] = "chunked"
    Options = ChunkedOptions
    options: ChunkedOptions

    def __init__(self, options: ChunkedOptions | None = None) -> None:
        super().__init__(options)
        self._order = prompt_order(self.options.order)

    def plan(self, snapshot: Snapshot) -> Plan:
        prompts = self._order.ranked(snapshot)
        room = self.options.budget - _decode_tokens(snapshot)
        chunks = prompts.take(room, exact=True) if room > 0 else ()
        return Plan(prefill=chunks, shares=FULL, mode=Mode.MIXED)


def _decode_tokens(snapshot: Snapshot) -> int:
    """Returns the decode tokens of the step that the batch will be in: one for each running sequence, and one for each
    whose prompt ends in the batches before it."""
    return min(len(snapshot.running) + len(joining(snapshot)), snapshot.limits.max_running)
