"""A server's memory in miniature around an engine on any device: pages full of NaN, handed out at random, reused.

Every page that comes back is filled with NaN again before another sequence gets it. So a sequence that reads a byte
that it has not written is found out.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from semipd.core.config import PAGE_SIZE
from semipd.core.request import SamplingParams, StoppingParams
from semipd.engine.engine import PrefillItem, SampledToken, SamplingInput, SequenceFailure, TokenOutcome
from semipd.engine.layout import pool_shape, weight_layout
from semipd.engine.loading import load_checkpoint, read_model_config
from support.late_engine import LateEngine
from support.pulse import CountedPulse
from support.wish import Wish

CAPTURE_S = 60.0


@dataclass
class Answer:
    wish: Wish
    tokens: list[int] = field(default_factory=list)
    steps: list[TokenOutcome] = field(default_factory=list)
    left: bool = False
    """It was made to leave: outcomes that still come do not count."""

    @property
    def ended(self) -> bool:
        last = self.steps[-1] if self.steps else None
        return isinstance(last, SequenceFailure) or (last is not None and last.end is not None)

    def rest(self) -> Wish:
        """Returns a wish for what is left of it, as a preempted sequence is taken up again."""
        wish = self.wish
        return Wish(wish.prompt, wish.sampling, wish.stopping, (*wish.output, *self.tokens), wish.chunks)


class Rig:
    def __init__(
        self,
        directory: Path,
        device: torch.device,
        dtype: torch.dtype,
        pages: int = 256,
        fill: float = math.nan,
        capture: bool = False,
        **limits: Any,
    ) -> None:
        """`capture`: passes run as CUDA graphs, where there are any. `limits`: of the GPU's engine, max_batch_tokens,
        max_running, max_context and sms_choices; a test that changes one has kernels compiled for it alone."""
        self.model = read_model_config(directory)
        self.device, self._fill = device, fill
        loaded = {spec.name: torch.empty(spec.shape, dtype=dtype) for spec in weight_layout(self.model, "")}
        load_checkpoint(directory, self.model, loaded, lambda done, total: None)
        self.weights = {name: tensor.to(device) for name, tensor in loaded.items()}
        self.pool = torch.full(pool_shape(self.model, pages), fill, dtype=dtype, device=device)
        self.limits = {"max_batch_tokens": 1024, "max_running": 64, "max_context": 512, **limits}
        self.engine = _engine(self.model, self.weights, self.pool, self.limits)
        self.batch = self.engine.decode_batch()
        if capture and device.type == "cuda":
            self.engine.open_prefill().capture.run(CAPTURE_S)
            self.batch.capture.run(CAPTURE_S)
        self.answers: dict[int, Answer] = {}
        """The answers by lease, which is never used twice."""
        self.pulse = CountedPulse()
        self._random = random.Random(3)
        self._free = list(range(pages))
        self._held: dict[int, list[int]] = {}
        self._next = 0

    def close(self) -> None:
        """Waits until everything that the device does for it is over."""
        self.batch.drain(self.pulse)
        close = getattr(self.engine, "close", None)
        if close is not None:
            close()
        self.synchronise()

    @property
    def pulses(self) -> int:
        return self.pulse.beats

    def synchronise(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    # --- pages ----------------------------------------------------------------------------------------------------

    def lease(self) -> int:
        self._next += 1
        return self._next

    def take(self, lease: int, tokens: int) -> np.ndarray:
        """The lease's table, grown to so many tokens."""
        held = self._held.setdefault(lease, [])
        while len(held) * PAGE_SIZE < tokens:
            held.append(self._free.pop(self._random.randrange(len(self._free))))
        return np.array(held, np.int32)

    def release(self, lease: int) -> None:
        pages = self._held.pop(lease)
        self.synchronise()
        self.pool[:, pages] = self._fill
        self.synchronise()
        self._free += pages

    # --- requests -------------------------------------------------------------------------------------------------

    def run(self, wishes: Iterable[Wish]) -> list[Answer]:
        """Runs every wish to its end: prefilled in chunks, all that are due in one pass, and decoded together."""
        wishes = list(wishes)
        waiting = dict(enumerate(wishes))
        answers: dict[int, Answer] = {}
        step = 0
        while waiting or len(self.batch):
            due = [place for place, wish in waiting.items() if wish.joins_at <= step or not len(self.batch)]
            answers.update(zip(due, self.admit([waiting.pop(place) for place in due]), strict=True))
            self.step()
            step += 1
        self.settle()
        return [answers[place] for place in range(len(wishes))]

    def admit(self, wishes: Sequence[Wish]) -> list[Answer]:
        """Prefills the wishes, and puts those that go on into the batch."""
        leases = [self.lease() for _ in wishes]
        answers = [Answer(wish) for wish in wishes]
        self.answers.update(zip(leases, answers, strict=True))
        done = dict.fromkeys(leases, 0)
        turn = 0
        while done:
            for items in self._passes([self._item(lease, at, turn) for lease, at in done.items()]):
                for item, outcome in zip(items, self.engine.prefill(items, self.pulse), strict=True):
                    done[item.lease] += len(item.tokens)
                    if item.sampling is None:
                        assert outcome is None
                    else:
                        self._begin(item, done.pop(item.lease), outcome)
            turn += 1
        return answers

    def step(self) -> list[int]:
        """Makes one step of the batch, if there is any, and returns the leases whose outcomes came with it."""
        if not len(self.batch):
            return self.settle()
        for lease in self.batch.wanting_pages():
            held = len(self._held[lease])
            self.batch.grow(lease, self.take(lease, (held + 1) * PAGE_SIZE)[held:])
        return self._note(self.batch.step(self.pulse))

    def settle(self) -> list[int]:
        """Waits until nothing is under way, and returns the leases whose outcomes came with it."""
        return self._note(self.batch.drain(self.pulse))

    def leave(self, lease: int) -> Answer:
        """Takes a cancelled or preempted sequence out of the batch."""
        self.batch.remove(lease)
        self.answers[lease].left = True
        return self.answers[lease]

    def adopt(self, tokens: Sequence[int], fed: int, sampling: SamplingParams, stopping: StoppingParams) -> int:
        """Adds a sequence whose `tokens` are prefilled without a sample, and returns its lease. `fed`: its next input
        token."""
        lease = self.lease()
        self.logits({lease: tokens})
        self.answers[lease] = Answer(Wish(tokens, sampling, stopping, (fed,)))
        self.batch.add(
            lease, len(tokens), self.take(lease, len(tokens)), SamplingInput(sampling, stopping, tuple(tokens), (fed,))
        )
        return lease

    def logits(
        self, sequences: Mapping[int, Sequence[int]], chunks: Sequence[int] = (10_000,)
    ) -> dict[int, torch.Tensor]:
        """Returns teacher-forced logits: [tokens, vocab] float32 on the CPU, by lease. The pages stay with the
        leases."""
        parts: dict[int, list[torch.Tensor]] = {lease: [] for lease in sequences}
        done = dict.fromkeys(sequences, 0)
        turn = 0
        while done:
            items = []
            for lease, at in done.items():
                chunk = list(sequences[lease][at : at + self._chunk(chunks, turn)])
                table = self.take(lease, at + len(chunk))
                items.append(PrefillItem(lease, chunk, at, table, None, len(sequences[lease])))
            for part in self._passes(items):
                rows = self.engine.logits(part).cpu().split([len(item.tokens) for item in part])
                for item, logits in zip(part, rows, strict=True):
                    parts[item.lease].append(logits)
                    done[item.lease] += len(item.tokens)
                    if done[item.lease] == len(sequences[item.lease]):
                        del done[item.lease]
            turn += 1
        return {lease: torch.cat(rows) for lease, rows in parts.items()}

    def forced(self, sequences: Sequence[Sequence[int]], chunks: Sequence[int] = (10_000,)) -> list[torch.Tensor]:
        """Returns `logits`, on pages of their own that are given back after."""
        leases = [self.lease() for _ in sequences]
        answers = self.logits(dict(zip(leases, sequences, strict=True)), chunks)
        for lease in leases:
            self.release(lease)
        return [answers[lease] for lease in leases]

    def _passes(self, items: Sequence[PrefillItem]) -> list[list[PrefillItem]]:
        """Returns the items of each pass, as many as its tokens allow."""
        passes: list[list[PrefillItem]] = [[]]
        for item in items:
            if sum(len(i.tokens) for i in passes[-1]) + len(item.tokens) > self.limits["max_batch_tokens"]:
                passes.append([])
            passes[-1].append(item)
        return [each for each in passes if each]

    def _chunk(self, chunks: Sequence[int], turn: int) -> int:
        return min(chunks[turn % len(chunks)], int(self.limits["max_batch_tokens"]))

    def _item(self, lease: int, at: int, turn: int) -> PrefillItem:
        wish = self.answers[lease].wish
        tokens = [*wish.prompt, *wish.output]
        chunk = tokens[at : at + self._chunk(wish.chunks, turn)]
        end = at + len(chunk)
        sampling_input = (
            SamplingInput(wish.sampling, wish.stopping, tuple(wish.prompt), wish.output) if end == len(tokens) else None
        )
        return PrefillItem(lease, chunk, at, self.take(lease, end), sampling_input, len(wish.prompt))

    def _begin(self, item: PrefillItem, context: int, outcome: TokenOutcome | None) -> None:
        assert outcome is not None
        assert item.sampling is not None
        answer = self.answers[item.lease]
        _write_down(answer, outcome)
        if answer.ended:
            self.release(item.lease)
            return
        assert isinstance(outcome, SampledToken)
        sampling_input = SamplingInput(
            item.sampling.params, item.sampling.stopping, item.sampling.prompt, (*item.sampling.output, outcome.token)
        )
        self.batch.add(item.lease, context, self.take(item.lease, context), sampling_input)

    def _note(self, outcomes: Sequence[tuple[int, TokenOutcome]]) -> list[int]:
        for lease, outcome in outcomes:
            if not self.answers[lease].left:
                _write_down(self.answers[lease], outcome)
        for lease in self.batch.quiet():
            self.release(lease)
        return [lease for lease, _ in outcomes]

    @property
    def pages_held(self) -> int:
        return sum(map(len, self._held.values()))


def _write_down(answer: Answer, outcome: TokenOutcome) -> None:
    assert not answer.ended, "an outcome after the last"
    answer.steps.append(outcome)
    if isinstance(outcome, SampledToken):
        assert outcome.position == len(answer.wish.output) + len(answer.tokens)
        answer.tokens.append(outcome.token)


def _engine(model: Any, weights: Mapping[str, torch.Tensor], pool: torch.Tensor, limits: Mapping[str, Any]) -> Any:
    if pool.device.type == "cuda":
        from semipd.engine.cuda.engine import CudaEngine  # noqa: PLC0415  # not installed without a GPU

        return CudaEngine(model, weights, pool, **limits)
    return LateEngine(model, weights, pool)
