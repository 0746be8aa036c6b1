"""Finds how many sequences are best in the decode batch, where a step costs as much as the size that it is padded to.

Time-sliced, a turn is one decode step and the prefill between two steps. With n sequences in a step, n tokens are
sampled in a turn. For each of them c prompt tokens (`prompt_per_token`) must be computed, so that as many sequences
arrive as end; a prompt token takes t seconds. A step padded to size s takes D(s) seconds, and the turn must keep the
TPOT T. So at each size there run

    n(s) = min(s, (T − D(s)) / (c · t))

sequences, and what is served is n(s) / (D(s) + n(s) · c · t) tokens a second. A step that is padded to much more than
is in it leaves prompts too little time. Then it is better to let one more sequence wait until another ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from semipd.core.latency import LatencyModel
from semipd.policies.builtin.adaptive.tuning import TUNING, Tuning


@dataclass(frozen=True, slots=True)
class DecodeTraffic:
    """The traffic that is served, on average."""

    context_tokens: float
    """Tokens that a sequence attends to."""
    prompt_per_token: float
    """Prompt tokens to compute for each token that is sampled."""
    tpot_s: float
    """Seconds between two tokens of a sequence, at most."""


def best_batch_size(model: LatencyModel, sizes: Sequence[int], traffic: DecodeTraffic, tuning: Tuning = TUNING) -> int:
    """Returns the largest of `sizes` that serves nearly as much as any of them, where more arrives than can be served.

    `sizes` is not empty. Where none keeps the TPOT it returns the largest: then nobody is held back.
    """
    probe = tuning.forecast.probe_tokens
    prompt_s = traffic.prompt_per_token * model.prompt_s(probe, 0) / probe
    served = []
    for size in sizes:
        step_s = model.decode_s(size, round(size * traffic.context_tokens))
        sequences = min(size, (traffic.tpot_s - step_s) / prompt_s)
        served.append(sequences / (step_s + sequences * prompt_s) if sequences > 0 else 0.0)
    enough = (1 - tuning.nearly) * max(served)
    return max(size for size, of_size in zip(sizes, served, strict=True) if of_size >= enough)
