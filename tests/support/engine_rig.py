"""A server's memory in miniature around the CPU engine."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from semipd.core.config import PAGE_SIZE
from semipd.core.model import ModelConfig
from semipd.engine.engine import CpuEngine, PrefillItem, SampledToken, SamplingInput, SequenceFailure, TokenOutcome
from semipd.engine.layout import pool_shape, weight_layout
from semipd.engine.loading import load_checkpoint, read_model_config
from support.pulse import CountedPulse
from support.wish import Wish


def load(directory: Path, dtype: torch.dtype = torch.float32) -> tuple[ModelConfig, dict[str, torch.Tensor]]:
    model = read_model_config(directory)
    weights = {spec.name: torch.full(spec.shape, torch.nan, dtype=dtype) for spec in weight_layout(model, "")}
    load_checkpoint(directory, model, weights, lambda done, total: None)
    return model, weights


@dataclass
class EngineAnswer:
    tokens: list[int] = field(default_factory=list)
    steps: list[TokenOutcome] = field(default_factory=list)


class EngineRig:
    """An engine, and a pool full of NaN whose pages are handed out in random order and reused."""

    def __init__(self, directory: Path, pages: int = 64, dtype: torch.dtype = torch.float32) -> None:
        self.model, self.weights = load(directory, dtype)
        self.pool = torch.full(pool_shape(self.model, pages), torch.nan, dtype=dtype)
        self.engine = CpuEngine(self.model, self.weights, self.pool)
        self.batch = self.engine.decode_batch()
        self.pulse = CountedPulse()
        self._random = random.Random(3)
        self._free = list(range(pages))
        self._held: dict[int, list[int]] = {}

    @property
    def pulses(self) -> int:
        return self.pulse.beats

    def take(self, lease: int, tokens: int) -> np.ndarray:
        """The lease's table, grown to so many tokens."""
        held = self._held.setdefault(lease, [])
        while len(held) * PAGE_SIZE < tokens:
            held.append(self._free.pop(self._random.randrange(len(self._free))))
        return np.array(held, np.int32)

    def assign(self, lease: int, page: int) -> None:
        """Gives a lease this very page."""
        self._free.remove(page)
        self._held.setdefault(lease, []).append(page)

    def release(self, lease: int) -> None:
        self._free += self._held.pop(lease)

    def run(self, wishes: Iterable[Wish]) -> list[EngineAnswer]:
        """Every wish to its end: prefilled in chunks, all that are due in one pass, and decoded together."""
        wishes = list(wishes)
        answers = [EngineAnswer() for _ in wishes]
        waiting = dict(enumerate(wishes))
        step = 0
        while waiting or len(self.batch):
            due = {lease: wish for lease, wish in waiting.items() if wish.joins_at <= step or not len(self.batch)}
            for lease in due:
                del waiting[lease]
            self._prefill(due, answers)
            for lease in self.batch.wanting_pages():
                held = len(self._held[lease])
                self.batch.grow(lease, self.take(lease, (held + 1) * PAGE_SIZE)[held:])
            for lease, outcome in self.batch.step(self.pulse):
                self._note(lease, outcome, answers[lease])
            step += 1
        return answers

    def _prefill(self, due: dict[int, Wish], answers: list[EngineAnswer]) -> None:
        done = dict.fromkeys(due, 0)
        turn = 0
        while done:
            items = [self._item(lease, due[lease], at, turn) for lease, at in done.items()]
            for item, outcome in zip(items, self.engine.prefill(items, self.pulse), strict=True):
                done[item.lease] += len(item.tokens)
                if item.sampling is None:
                    assert outcome is None
                    continue
                assert outcome is not None
                context = done.pop(item.lease)
                self._note(item.lease, outcome, answers[item.lease])
                if isinstance(outcome, SampledToken) and outcome.end is None:
                    output = (*item.sampling.output, outcome.token)
                    sampling_input = SamplingInput(
                        item.sampling.params, item.sampling.stopping, item.sampling.prompt, output
                    )
                    self.batch.add(item.lease, context, self.take(item.lease, context), sampling_input)
            turn += 1

    def _item(self, lease: int, wish: Wish, at: int, turn: int) -> PrefillItem:
        tokens = [*wish.prompt, *wish.output]
        chunk = tokens[at : at + wish.chunks[turn % len(wish.chunks)]]
        end = at + len(chunk)
        sampling_input = (
            SamplingInput(wish.sampling, wish.stopping, tuple(wish.prompt), wish.output) if end == len(tokens) else None
        )
        return PrefillItem(lease, chunk, at, self.take(lease, end), sampling_input, len(wish.prompt))

    def _note(self, lease: int, outcome: TokenOutcome, answer: EngineAnswer) -> None:
        answer.steps.append(outcome)
        if isinstance(outcome, SampledToken):
            answer.tokens.append(outcome.token)
        if isinstance(outcome, SequenceFailure) or outcome.end is not None:
            self.release(lease)


MakeRig = Callable[..., EngineRig]
"""Makes a rig of a family (None: Llama); options are those of EngineRig."""
