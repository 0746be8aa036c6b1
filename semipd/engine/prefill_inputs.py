"""Chunks of prompts, and the inputs of a forward pass on a CPU that follow from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from semipd.engine.attention import Pages, TokenSpan
from semipd.engine.rope import Rotary
from semipd.engine.sampling import SequenceSampler
from semipd.engine.sampling_result import SamplingInput, TokenOutcome


@dataclass(frozen=True, slots=True)
class PrefillItem:
    """The next chunk of a sequence's prompt."""

    lease: int
    tokens: Sequence[int]
    """The chunk's tokens, at least one."""
    start: int
    """The number of tokens of the sequence whose KV is in the pool."""
    table: Pages
    """Page numbers in the order of the tokens, for start + len(tokens) tokens at least."""
    sampling: SamplingInput | None = None
    """Set on the chunk that ends the prompt: a token is sampled after it."""
    prompt_tokens: int | None = None
    """Length of the whole prompt, without output computed again. It matters only to dynamic RoPE scaling beyond
    the model's `max_position_embeddings` (see `rope`). None: each token is rotated for the sequence up to it."""


PromptOutcomes = tuple[Sequence[PrefillItem], list[TokenOutcome | None]]
"""The items of a pass, and what `CpuEngine.prefill` returns for them."""


def spans_of(items: Sequence[PrefillItem]) -> list[TokenSpan]:
    return [TokenSpan(item.start, item.start + len(item.tokens), item.table) for item in items]


def tokens_of(items: Sequence[PrefillItem]) -> npt.NDArray[np.int64]:
    """Returns the tokens of all items, one after another."""
    return np.concatenate([np.asarray(item.tokens, np.int64) for item in items])


def wanted_of(items: Sequence[PrefillItem]) -> npt.NDArray[np.int64]:
    """Returns the places, among all tokens, after which a token is sampled."""
    last = np.cumsum([len(item.tokens) for item in items]) - 1
    return last[[item.sampling is not None for item in items]]


def rotation_of(items: Sequence[PrefillItem], rotary: Rotary) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns cosine and sine, [tokens, head_dim] each."""
    spans = spans_of(items)
    positions = torch.from_numpy(np.concatenate([np.arange(span.start, span.end) for span in spans]))
    cos, sin = rotary.at(positions, max(span.end for span in spans) - 1)
    row = 0
    for item, span in zip(items, spans, strict=True):
        rows = slice(row, row + len(item.tokens))
        whole = rotary.long_prompt(span.start, span.end, item.prompt_tokens or 0)
        if whole is not None:
            cos[rows], sin[rows] = whole
        row = rows.stop
    return cos, sin


def samplers_of(items: Sequence[PrefillItem], vocab: int) -> tuple[list[SequenceSampler], list[int]]:
    """Returns the samplers of the items that are sampled after, and the output positions of their tokens."""
    draws = [item.sampling for item in items if item.sampling is not None]
    samplers = [SequenceSampler(d.params, d.stopping, d.prompt, d.output, vocab) for d in draws]
    return samplers, [len(d.output) for d in draws]


def answers_of(items: Sequence[PrefillItem], drawn: Sequence[TokenOutcome]) -> list[TokenOutcome | None]:
    """Returns an outcome for each item that is sampled after, in their order; None for the others."""
    outcomes = iter(drawn)
    return [None if item.sampling is None else next(outcomes) for item in items]
