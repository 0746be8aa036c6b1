"""The CPU engine behind the interface of the GPU engine, so that the GPU's tests can be tried where there is no GPU.

What the GPU engine promises beyond `semipd.engine.engine.CpuEngine`:

* `logits(items)`: [all tokens, vocab] float32, after every token of the items; writes KV as `prefill` does.
* A decode batch is one step late: `step` launches a step and returns the outcomes of the one before, `drain` those of
  what is under way. A sequence that left may still be touched by what is under way: `quiet` names it when it no longer
  is, once, and only then may its pages be given to others.
* `batch.last_logits()`: [rows, vocab], raw, of the step launched last; rows in the order of `leases()` at its launch,
  without those that wanted pages.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from semipd.engine.attention import TokenSpan
from semipd.engine.batch import CpuDecodeBatch
from semipd.engine.engine import CpuEngine, PrefillItem, SequenceFailure, TokenOutcome
from semipd.engine.pulse import Pulse, SilentPulse

Outcomes = list[tuple[int, TokenOutcome]]


class LateEngine(CpuEngine):
    def logits(self, items: Sequence[PrefillItem]) -> torch.Tensor:
        with torch.inference_mode():
            spans = [TokenSpan(item.start, item.start + len(item.tokens), item.table) for item in items]
            tokens = torch.from_numpy(np.concatenate([np.asarray(item.tokens, np.int64) for item in items]))
            rotation = self._rotation(items, spans)
            return self._decoder.forward(tokens, rotation, self._attention.prefill(spans), SilentPulse()).float()

    def decode_batch(self) -> LateBatch:  # type: ignore[override]
        inner = _Remembering(self._model.vocab_size, self._decoder, self._attention, self._rotary)
        return LateBatch(inner)


class _Remembering(CpuDecodeBatch):
    logits = torch.empty(0)

    def _forward(self, *arguments: object) -> torch.Tensor:
        self.logits = super()._forward(*arguments)  # type: ignore[arg-type]
        return self.logits


class LateBatch:
    def __init__(self, inner: _Remembering) -> None:
        self._inner = inner
        self._under_way: Outcomes = []
        self._touched: list[int] = []
        """Leases that have left, but are part of the step under way."""
        self._quiet: list[int] = []
        self.add, self.grow, self.hold = inner.add, inner.grow, inner.hold
        self.leases, self.context_tokens, self.wanting_pages = inner.leases, inner.context_tokens, inner.wanting_pages

    def __len__(self) -> int:
        return len(self._inner)

    def remove(self, lease: int) -> None:
        self._inner.remove(lease)
        self._touched.append(lease)
        self._under_way = [each for each in self._under_way if each[0] != lease]

    def step(self, pulse: Pulse) -> Outcomes:
        answers = self._land()
        self._under_way = self._inner.step(pulse)
        return answers

    def drain(self, pulse: Pulse) -> Outcomes:
        return self._land()

    def quiet(self) -> list[int]:
        quiet, self._quiet = self._quiet, []
        return quiet

    def last_logits(self) -> torch.Tensor:
        return self._inner.logits

    def _land(self) -> Outcomes:
        answers, self._under_way = self._under_way, []
        ended = [lease for lease, outcome in answers if isinstance(outcome, SequenceFailure) or outcome.end is not None]
        self._quiet += self._touched + ended
        self._touched = []
        return answers
