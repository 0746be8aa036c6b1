"""The latency model for policies: the model itself (`semipd.core.latency`), and what it says of an observed step."""

from __future__ import annotations

from semipd.core.latency import LatencyModel, Scales
from semipd.core.partition import FULL, Phase
from semipd.core.sms import split
from semipd.core.snapshot import Step

__all__ = ["LatencyModel", "Scales", "expected_s", "split"]


def expected_s(model: LatencyModel, step: Step, company: bool) -> float:
    """What the model says of an observed step. Without company a phase has the whole device, whatever its share."""
    shares = step.shares if company else FULL
    if step.phase is Phase.PREFILL:
        other = shares.decode if company else 0.0
        return model.prefill_s(
            step.tokens, step.context_tokens, share=shares.prefill, other=other, sequences=step.sequences
        )
    other = shares.prefill if company else 0.0
    return model.decode_s(step.sequences, step.context_tokens, share=shares.decode, other=other)
