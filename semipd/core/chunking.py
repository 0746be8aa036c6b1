"""How a prefill batch is spread over the decode steps that take it along; as `semipd.workers.mixed_batches` does it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from semipd.core.config import MIXED_PROMPTS


def spread(chunks: Iterable[tuple[int, int]], most_tokens: int) -> Iterator[tuple[int, float]]:
    """Of each step, in order: tokens, and pairs of a token and one that it attends to.

    `chunks`: of each, the tokens computed before it and its own.
    """
    tokens, pairs, prompts = 0, 0.0, 0
    for start, count in chunks:
        at, end = start, start + count
        while at < end:
            if tokens == most_tokens or prompts == MIXED_PROMPTS:
                yield tokens, pairs
                tokens, pairs, prompts = 0, 0.0, 0
            taken = min(most_tokens - tokens, end - at)
            pairs += taken * (at + taken / 2)
            tokens, prompts, at = tokens + taken, prompts + 1, at + taken
    if tokens:
        yield tokens, pairs
