"""How many sequences are best in the decode batch, where a step costs what the size costs that it is padded to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from semipd.policies.toolkit.latency import LatencyModel

NEARLY = 0.05
"""A larger batch that serves less by no more than that part is as good: then nobody is held back."""


@dataclass(frozen=True, slots=True)
class Traffic:
    """What is served, on average."""

    context: float
    """Tokens that a sequence attends to."""
    prompt_per_token: float
    """Prompt tokens to compute for each token that is sampled."""
    pace_s: float
    """Seconds between two tokens of a sequence, at most."""


def most_rows(model: LatencyModel, sizes: Sequence[int], traffic: Traffic) -> int:
    """The largest of `sizes`, not empty, that serves as much as any, nearly, where the phases take turns and more comes
    than can be served.

    With n sequences in a step, n tokens are sampled a turn, and `prompt_per_token` times as many prompt tokens must be
    computed in it, so that as many come as end. The turn, step and prompts, has the pace to keep: so at each size there
    are as many as fit into its step and leave the prompts their time, and what that serves is n over the turn. A step
    padded to much more than is in it leaves prompts too little time; then it is better to let one more wait until
    another ends.
    """
    token_s = traffic.prompt_per_token * model.prompt_s(1000, 0) / 1000
    served = []
    for size in sizes:
        step_s = model.decode_s(size, round(size * traffic.context))
        rows = min(size, (traffic.pace_s - step_s) / token_s)
        served.append(rows / (step_s + rows * token_s) if rows > 0 else 0.0)
    enough = (1 - NEARLY) * max(served)
    return max(size for size, of_size in zip(sizes, served, strict=True) if of_size >= enough)
