"""A request of a test to an engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from semipd.core.request import SamplingParams, StoppingParams

GREEDY = SamplingParams(temperature=0.0)
FORTY_TOKENS = StoppingParams(max_tokens=40)


@dataclass(frozen=True)
class Wish:
    """A request as a test states it."""

    prompt: Sequence[int]
    sampling: SamplingParams = GREEDY
    stopping: StoppingParams = FORTY_TOKENS
    output: tuple[int, ...] = ()
    """Sampled before; it is computed again with the prompt."""
    chunks: Sequence[int] = (10_000,)
    """Sizes of the prompt's chunks, taken in turn."""
    joins_at: int = 0
    """The step before which it is prefilled."""
