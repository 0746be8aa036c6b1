"""Samples tokens from logits, for all rows of a batch at once. No row influences another.

The order is: bias, penalties, the ban on stop tokens before min_tokens, temperature, top-k, top-p, min-p, draw. A draw
is the inverse of the cumulative distribution in the order of token ids, at one uniform number for each (seed,
position). All filters are thresholds on the logits, ties included. So a change in the last bit of a logit, as another
batch size brings it, moves the border between two tokens by as little, and never swaps tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from semipd.core.request import Logprob, SamplingParams, StoppingParams
from semipd.engine.counter_rng import uniforms

CERTAIN_TEMPERATURE = 1e-5
"""Below this temperature the likeliest token is taken: nothing else could be drawn."""


CANDIDATES = 256
"""The number of likeliest tokens that are searched first for a nucleus."""


class TokenHistory:
    """The tokens of a sequence as its penalties need them, [vocab] each."""

    def __init__(self, vocab_size: int, prompt: Sequence[int], output: Sequence[int]) -> None:
        self.counts = torch.bincount(torch.tensor(output, dtype=torch.int64), minlength=vocab_size).float()
        """The number of times that each token is in the output."""
        self.seen = self.counts > 0
        """True for tokens of prompt and output."""
        self.seen[torch.tensor(prompt, dtype=torch.int64)] = True

    def append(self, token: int) -> None:
        self.counts[token] += 1
        self.seen[token] = True


class SequenceSampler:
    """The sampling of one sequence: keeps what does not change from token to token."""

    __slots__ = ("bias", "certain", "history", "params", "plain", "stop_ids", "stopping")

    def __init__(
        self,
        params: SamplingParams,
        stopping: StoppingParams,
        prompt: Sequence[int],
        output: Sequence[int],
        vocab_size: int,
    ) -> None:
        self.params = params
        self.stopping = stopping
        self.certain = params.temperature < CERTAIN_TEMPERATURE
        self.history = TokenHistory(vocab_size, prompt, output) if params.penalised else None
        self.bias: tuple[torch.Tensor, torch.Tensor] | None = None
        if params.logit_bias:
            tokens = torch.tensor(list(params.logit_bias), dtype=torch.int64)
            self.bias = tokens, torch.tensor(list(params.logit_bias.values()), dtype=torch.float32)
        self.stop_ids: torch.Tensor | None = None
        if stopping.min_tokens > 0 and stopping.stop_token_ids:
            ids = [i for i in sorted(stopping.stop_token_ids) if i < vocab_size]
            self.stop_ids = torch.tensor(ids, dtype=torch.int64)
        self.plain = (
            self.certain
            and self.history is None
            and self.bias is None
            and self.stop_ids is None
            and not params.logprobs
        )
        """True where nothing but the likeliest token is asked for."""

    def adjust(self, logits: torch.Tensor, position: int) -> None:
        """Applies bias, penalties and the ban on stop tokens, in place on a float32 row [vocab]."""
        if self.bias is not None:
            logits.index_add_(0, *self.bias)
        if self.history is not None:
            self._penalise(logits, self.history)
        if self.stop_ids is not None and position < self.stopping.min_tokens:
            logits.index_fill_(0, self.stop_ids, -torch.inf)

    def _penalise(self, logits: torch.Tensor, history: TokenHistory) -> None:
        params = self.params
        if params.repetition_penalty != 1.0:
            factor = torch.where(logits > 0, 1 / params.repetition_penalty, params.repetition_penalty)
            logits.copy_(torch.where(history.seen, logits * factor, logits))
        if params.frequency_penalty != 0.0:
            logits.sub_(history.counts, alpha=params.frequency_penalty)
        if params.presence_penalty != 0.0:
            logits.sub_((history.counts > 0).float(), alpha=params.presence_penalty)

    @property
    def adjusts(self) -> bool:
        return self.bias is not None or self.history is not None or self.stop_ids is not None

    def took(self, token: int) -> None:
        """Notes a sampled token. To be called for every one."""
        if self.history is not None:
            self.history.append(token)


@dataclass(frozen=True, slots=True)
class TokenChoice:
    """The token of a row; None: its logits are not finite, and no token can be drawn from them."""

    token: int | None
    logprob: Logprob | None = None


def choose_tokens(
    logits: torch.Tensor, samplers: Sequence[SequenceSampler], positions: Sequence[int]
) -> list[TokenChoice]:
    """Samples one token a row. `logits` [rows, vocab]; `positions`: the output position of each row's token, from 0."""
    likeliest = logits.argmax(-1)  # a NaN counts as the greatest
    finite = torch.isfinite(logits.gather(1, likeliest[:, None])[:, 0]).tolist()
    if all(sampler.plain for sampler in samplers):
        return [TokenChoice(token if ok else None) for token, ok in zip(likeliest.tolist(), finite, strict=True)]
    raw = logits.float()
    tokens = _tokens(raw, likeliest, samplers, positions)
    logprobs = _logprobs(raw, tokens, samplers)
    return [
        TokenChoice(token, logprob) if ok else TokenChoice(None)
        for token, logprob, ok in zip(tokens, logprobs, finite, strict=True)
    ]


def _tokens(
    raw: torch.Tensor, likeliest: torch.Tensor, samplers: Sequence[SequenceSampler], positions: Sequence[int]
) -> list[int]:
    adjusted = raw
    adjusting = [row for row, sampler in enumerate(samplers) if sampler.adjusts]
    if adjusting:
        adjusted = raw.clone()
        for row in adjusting:
            samplers[row].adjust(adjusted[row], positions[row])
        likeliest = adjusted.argmax(-1)
    tokens: list[int] = likeliest.tolist()
    drawn = [row for row, sampler in enumerate(samplers) if not sampler.certain]
    if not drawn:
        return tokens
    rows = adjusted if len(drawn) == len(samplers) else adjusted[drawn]
    params = [samplers[row].params for row in drawn]
    chance = uniforms(np.array([p.seed for p in params], np.uint64), np.array([positions[row] for row in drawn]))
    for row, token in zip(drawn, draw(rows, params, torch.from_numpy(chance)).tolist(), strict=True):
        tokens[row] = token
    return tokens


def draw(logits: torch.Tensor, params: Sequence[SamplingParams], chance: torch.Tensor) -> torch.Tensor:
    """Returns the tokens [rows] at the points `chance` [rows], each in [0, 1), of the rows' distributions."""
    temperature = torch.tensor([p.temperature for p in params], dtype=torch.float32)
    scaled = logits / temperature[:, None]
    filtered = [row for row, p in enumerate(params) if 0 < p.top_k < logits.shape[1] or p.top_p < 1 or p.min_p > 0]
    if filtered:
        least = torch.full((len(params),), -torch.inf)
        least[filtered] = _least(scaled[filtered], [params[row] for row in filtered])
        scaled = scaled.masked_fill(scaled < least[:, None], -torch.inf)
    cumulative = scaled.softmax(-1).cumsum(-1, dtype=torch.float64)
    at = chance[:, None].to(cumulative) * cumulative[:, -1:]
    # The first token whose cumulative probability is above the point: one of probability zero is never it.
    tokens = torch.searchsorted(cumulative, at, right=True)[:, 0]
    return tokens.clamp_(max=logits.shape[1] - 1)


def _least(scaled: torch.Tensor, params: Sequence[SamplingParams], width: int = CANDIDATES) -> torch.Tensor:
    """Returns the smallest scaled logit that each row may draw, [rows], after top-k, top-p and min-p.

    Sorting a vocabulary is slow, and its head mostly holds the nucleus. So the `width` likeliest tokens are sorted
    first, and all tokens only for rows whose nucleus is wider. A row's answer does not depend on which it was.
    """
    vocab = scaled.shape[1]
    limits = torch.tensor([p.top_k if 0 < p.top_k < vocab else vocab for p in params])[:, None]
    top_p = torch.tensor([p.top_p if p.top_p < 1 else torch.inf for p in params])[:, None]
    min_p = torch.tensor([p.min_p for p in params])[:, None]
    limited = limits < vocab
    width = min(vocab, max([width, *(p.top_k for p in params if p.top_k < vocab)]))
    ordered = scaled.topk(width, -1).values
    kth = torch.where(limited, ordered.gather(1, limits.clamp(max=width) - 1), -torch.inf)
    left = ordered.masked_fill(ordered < kth, -torch.inf)
    total = torch.where(limited, left.logsumexp(-1, keepdim=True), scaled.logsumexp(-1, keepdim=True))
    probabilities = (left - total).exp()
    reached = probabilities.cumsum(-1)
    kept = (reached - probabilities < top_p).sum(-1, keepdim=True).clamp_(min=1)
    nucleus = torch.where(top_p < 1, ordered.gather(1, kept - 1), -torch.inf)
    least = torch.maximum(torch.maximum(kth, nucleus), ordered[:, :1] + min_p.log())[:, 0]
    if width < vocab:
        wider = ((top_p < 1) & ~limited & (reached[:, -1:] < top_p))[:, 0].nonzero()[:, 0]
        if len(wider):
            least[wider] = _least(scaled[wider], [params[row] for row in wider.tolist()], vocab)
    return least


def _logprobs(raw: torch.Tensor, tokens: list[int], samplers: Sequence[SequenceSampler]) -> list[Logprob | None]:
    """Returns log-probabilities under the raw distribution, for the rows that want them."""
    answers: list[Logprob | None] = [None] * len(tokens)
    wanting = [row for row, sampler in enumerate(samplers) if sampler.params.logprobs]
    if not wanting:
        return answers
    logprobs = raw[wanting].log_softmax(-1)
    own = logprobs.gather(1, torch.tensor([tokens[row] for row in wanting])[:, None])[:, 0].tolist()
    most = max(samplers[row].params.top_logprobs for row in wanting)
    top = logprobs.topk(min(most, raw.shape[1]), -1)
    values, ids = top.values.tolist(), top.indices.tolist()
    for place, row in enumerate(wanting):
        count = samplers[row].params.top_logprobs
        best = tuple(zip(ids[place][:count], values[place][:count], strict=True))
        answers[row] = Logprob(tokens[row], own[place], best)
    return answers
