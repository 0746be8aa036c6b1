"""The engine's interface, and the engine for CPUs.

An engine computes prompts in chunks and a continuous decode batch, over weights and pages that others own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from semipd.core.model import ModelConfig
from semipd.engine.attention import AttentionBackend, TokenSpan
from semipd.engine.batch import CpuDecodeBatch
from semipd.engine.decoder import Decoder
from semipd.engine.layout import pool_shape
from semipd.engine.paged_cpu import CpuPagedAttention
from semipd.engine.prefill_inputs import (
    PrefillItem,
    answers_of,
    rotation_of,
    samplers_of,
    spans_of,
    tokens_of,
    wanted_of,
)
from semipd.engine.pulse import Pulse
from semipd.engine.rope import Rotary
from semipd.engine.sampling import choose_tokens
from semipd.engine.sampling_result import SampledToken, SamplingInput, SequenceFailure, TokenOutcome, token_outcome

__all__ = [
    "CpuDecodeBatch",
    "CpuEngine",
    "PendingPrefill",
    "PrefillItem",
    "SampledToken",
    "SamplingInput",
    "SequenceFailure",
    "TokenOutcome",
]


class PendingPrefill(Protocol):
    """Chunks that are being computed, or about to be."""

    def launch(self) -> None:
        """Gives the chunks to the device. To be called once, unless `begin_prefill` has done it."""
        ...

    def finish(self, pulse: Pulse, on_computed: Callable[[], None] = lambda: None) -> list[TokenOutcome | None]:
        """Waits, and returns what `CpuEngine.prefill` returns. To be called once.

        `on_computed` is called when the device has done the last pass, before its outcomes are looked at.
        """
        ...


class CpuEngine:
    """Computes on the CPU. Only one thread may use it at a time.

    `semipd.engine.cuda.engine.CudaEngine` has the same methods on a GPU.
    """

    passes_ahead = 0
    """The number of prefill passes that may be begun while an earlier one is not finished."""

    def __init__(self, model: ModelConfig, weights: Mapping[str, torch.Tensor], pool: torch.Tensor) -> None:
        """Takes tensors with the shapes that `layout` says. `pool` has the weights' type or another floating-point
        type.

        Raises ValueError where a tensor has another shape.
        """
        if tuple(pool.shape) != pool_shape(model, pool.shape[1]):
            raise ValueError(f"the pool's shape is {tuple(pool.shape)}, not {pool_shape(model, pool.shape[1])}")
        self._model = model
        self._decoder = Decoder(model, weights)
        self._attention: AttentionBackend = CpuPagedAttention(model, pool)
        self._rotary = Rotary(model.rope, model.head_dim, model.max_position_embeddings, pool[:0])

    def prefill(self, items: Sequence[PrefillItem], pulse: Pulse) -> list[TokenOutcome | None]:
        """Computes all chunks in one forward pass.

        Returns an outcome for each item with `sampling`: its next token; and None for the others. A lease may occur
        once.
        """
        if not items:
            return []
        with torch.inference_mode():
            logits = self._forward(items, pulse)
            drawing = [item for item in items if item.sampling is not None]
            return self._sample(items, logits) if drawing else [None] * len(items)

    def begin_prefill(self, items: Sequence[PrefillItem]) -> PendingPrefill:
        """Launches what `prefill` computes; `finish` waits for it."""
        return CpuPendingPrefill(self, items)

    def prepare_prefill(self, items: Sequence[PrefillItem]) -> PendingPrefill:
        """Does what can be done of `prefill` before the device is free; `launch` and `finish` do the rest."""
        return CpuPendingPrefill(self, items)

    def decode_batch(self, prompt_tokens: int = 0) -> CpuDecodeBatch:
        """Returns an empty batch. A worker has one.

        `prompt_tokens`: the most prompt tokens of a step. It matters to a GPU's buffers only.
        """
        return CpuDecodeBatch(self._model.vocab_size, self._decoder, self._attention, self._rotary)

    def _forward(self, items: Sequence[PrefillItem], pulse: Pulse) -> torch.Tensor:
        """Returns the logits after each item that is sampled after, in their order."""
        spans = spans_of(items)
        return self._decoder.forward(
            torch.from_numpy(tokens_of(items)),
            self._rotation(items, spans),
            self._attention.prefill(spans),
            pulse,
            torch.from_numpy(wanted_of(items)),
        )

    def _rotation(self, items: Sequence[PrefillItem], spans: Sequence[TokenSpan]) -> tuple[torch.Tensor, torch.Tensor]:
        return rotation_of(items, self._rotary)

    def _sample(self, items: Sequence[PrefillItem], logits: torch.Tensor) -> list[TokenOutcome | None]:
        samplers, positions = samplers_of(items, self._model.vocab_size)
        choices = choose_tokens(logits, samplers, positions)
        return answers_of(
            items,
            [
                token_outcome(c.token, at, s.stopping, c.logprob)
                for c, s, at in zip(choices, samplers, positions, strict=True)
            ],
        )


@dataclass(frozen=True, slots=True)
class CpuPendingPrefill:
    """A `PendingPrefill` of a CPU, which computes when it is waited for."""

    engine: CpuEngine
    items: Sequence[PrefillItem]

    def launch(self) -> None:
        """Does nothing, since `finish` computes."""

    def finish(self, pulse: Pulse, on_computed: Callable[[], None] = lambda: None) -> list[TokenOutcome | None]:
        outcomes = self.engine.prefill(self.items, pulse)
        on_computed()
        return outcomes
