"""The engine's door: prompts in chunks, and a continuous decode batch, over weights and pages that others own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from semipd.core.model import ModelConfig
from semipd.engine.attention import AttentionBackend, Pages, Span
from semipd.engine.batch import DecodeBatch
from semipd.engine.decoder import Decoder, Pulse
from semipd.engine.layout import pool_shape
from semipd.engine.outcome import Draw, Failed, Sampled, settle
from semipd.engine.paged_cpu import PagedCpu
from semipd.engine.rope import Rotary
from semipd.engine.sampling import Sampler, choose

__all__ = ["DecodeBatch", "Draw", "Engine", "Failed", "Flight", "PrefillItem", "Sampled"]


@dataclass(frozen=True, slots=True)
class PrefillItem:
    """The next chunk of a sequence's prompt."""

    lease: int
    tokens: Sequence[int]
    """At least one."""
    start: int
    """Tokens of the sequence whose KV is in the pool."""
    table: Pages
    """Page numbers in the order of the tokens, up to start + len(tokens) at least."""
    draw: Draw | None = None
    """Set on the chunk that ends the prompt: sample a token after it."""
    prompt_tokens: int | None = None
    """Length of the whole prompt, without output computed again. Matters to dynamic RoPE scaling beyond the model's
    `max_position_embeddings` alone (see `rope`); None: each token is rotated for the sequence up to it."""


class Flight(Protocol):
    """Chunks that are being computed, or about to be."""

    def launch(self) -> None:
        """What `Engine.begin_prefill` does at once, and the maker of a prepared flight when it is time."""
        ...

    def finish(self, pulse: Pulse) -> list[Sampled | Failed | None]:
        """As `Engine.prefill`; once."""
        ...


class Engine:
    """Computes on the CPU. Not for several threads at once. `semipd.engine.cuda.engine` has the same doors on a GPU."""

    passes_ahead = 0
    """Flights that may be begun before the one before them is finished."""

    def __init__(self, model: ModelConfig, weights: Mapping[str, torch.Tensor], pool: torch.Tensor) -> None:
        """Tensors as `layout` says; `pool` is of the weights' type or another floating one.

        Raises ValueError where a tensor has another shape.
        """
        if tuple(pool.shape) != pool_shape(model, pool.shape[1]):
            raise ValueError(f"the pool's shape is {tuple(pool.shape)}, not {pool_shape(model, pool.shape[1])}")
        self._model = model
        self._decoder = Decoder(model, weights)
        self._attention: AttentionBackend = PagedCpu(model, pool)
        self._rotary = Rotary(model.rope, model.head_dim, model.max_position_embeddings, pool[:0])

    def prefill(self, items: Sequence[PrefillItem], pulse: Pulse) -> list[Sampled | Failed | None]:
        """All chunks in one forward pass. An item with a `draw` is answered with its next token, others with None.

        A lease may occur once.
        """
        if not items:
            return []
        with torch.inference_mode():
            logits = self._forward(items, pulse)
            drawing = [item for item in items if item.draw is not None]
            return self._sample(items, logits) if drawing else [None] * len(items)

    def begin_prefill(self, items: Sequence[PrefillItem]) -> Flight:
        """`prefill` in two parts: what is launched now, and what is waited for."""
        return Computed(self, items)

    def prepare_prefill(self, items: Sequence[PrefillItem]) -> Flight:
        """In three: what can be done before the device is free, `launch`, and `finish`."""
        return Computed(self, items)

    def use_sms(self, sms: int) -> int:
        """A CPU has none: 0."""
        return 0

    def decode_batch(self) -> DecodeBatch:
        """An empty one. A worker has one."""
        return DecodeBatch(self._model.vocab_size, self._decoder, self._attention, self._rotary)

    def _forward(self, items: Sequence[PrefillItem], pulse: Pulse) -> torch.Tensor:
        """Logits after each item with a draw, in their order."""
        spans = [Span(item.start, item.start + len(item.tokens), item.table) for item in items]
        tokens = np.concatenate([np.asarray(item.tokens, np.int64) for item in items])
        last = np.cumsum([len(item.tokens) for item in items]) - 1
        wanted = last[[item.draw is not None for item in items]]
        return self._decoder.forward(
            torch.from_numpy(tokens),
            self._rotation(items, spans),
            self._attention.prefill(spans),
            pulse,
            torch.from_numpy(wanted),
        )

    def _rotation(self, items: Sequence[PrefillItem], spans: Sequence[Span]) -> tuple[torch.Tensor, torch.Tensor]:
        positions = torch.from_numpy(np.concatenate([np.arange(span.start, span.end) for span in spans]))
        cos, sin = self._rotary.at(positions, max(span.end for span in spans) - 1)
        row = 0
        for item, span in zip(items, spans, strict=True):
            rows = slice(row, row + len(item.tokens))
            whole = self._rotary.long_prompt(span.start, span.end, item.prompt_tokens or 0)
            if whole is not None:
                cos[rows], sin[rows] = whole
            row = rows.stop
        return cos, sin

    def _sample(self, items: Sequence[PrefillItem], logits: torch.Tensor) -> list[Sampled | Failed | None]:
        vocab = self._model.vocab_size
        draws = [item.draw for item in items if item.draw is not None]
        samplers = [Sampler(d.sampling, d.stopping, d.prompt, d.output, vocab) for d in draws]
        positions = [len(d.output) for d in draws]
        choices = iter(zip(choose(logits, samplers, positions), samplers, positions, strict=True))
        return [None if item.draw is None else settle(*next(choices)) for item in items]


@dataclass(frozen=True, slots=True)
class Computed:
    """A flight of a CPU, which does nothing beside: it is computed when it is waited for."""

    engine: Engine
    items: Sequence[PrefillItem]

    def launch(self) -> None:
        """Nothing is computed before it is waited for."""

    def finish(self, pulse: Pulse) -> list[Sampled | Failed | None]:
        return self.engine.prefill(self.items, pulse)
