"""Prompts inside steps on the GPU's engine, against the CPU's engine with one request at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pytest

from semipd.core.config import MIXED_PROMPTS
from semipd.core.request import SamplingParams, StoppingParams
from semipd.engine.cuda.engine import CudaEngine
from semipd.engine.engine import Engine, PrefillItem
from semipd.engine.outcome import Draw, Failed, Sampled

Engines = Callable[[str], tuple[Engine, CudaEngine]]

PLAIN = SamplingParams(temperature=0.0)
WANTED: Sequence[tuple[int, SamplingParams, StoppingParams]] = (
    (5, PLAIN, StoppingParams(max_tokens=12)),
    (17, SamplingParams(temperature=1.0, seed=7), StoppingParams(max_tokens=10)),
    (3, SamplingParams(temperature=0.0, logprobs=True, top_logprobs=3), StoppingParams(max_tokens=9)),
    (20, SamplingParams(temperature=0.0, repetition_penalty=1.3, frequency_penalty=0.1), StoppingParams(max_tokens=11)),
    (
        33,
        SamplingParams(temperature=0.9, top_k=20, top_p=0.8, seed=3, logit_bias={3: 2.0}),
        StoppingParams(max_tokens=8),
    ),
    (
        70,
        SamplingParams(temperature=0.0, presence_penalty=0.5, logprobs=True, top_logprobs=1),
        StoppingParams(max_tokens=9, min_tokens=4, stop_token_ids=frozenset(range(0, 160, 3))),
    ),
)
PROMPT_TOKENS = 48
SCHEDULE: Mapping[int, Sequence[tuple[int, int, int | None]]] = {
    0: [(0, 0, 5), (1, 0, 11)],  # no row is ready
    1: [(1, 11, 17)],
    2: [(2, 0, 3), (3, 0, 20), (4, 0, 1)],
    4: [(4, 1, 30), (5, 0, 19)],
    5: [(5, 19, 64), (4, 30, 33)],
    6: [(5, 64, 70)],
    9: [(3, 0, 13)],
    10: [(3, 13, None)],
}
"""By step: lease, start and end of each chunk; None: with what was sampled before."""
PREEMPTED, AT = 3, 8


class Run:
    """The schedule on the GPU's engine."""

    def __init__(self, engine: CudaEngine) -> None:
        rng = np.random.default_rng(1)
        self.prompts = [rng.integers(0, 160, length).tolist() for length, _, _ in WANTED]
        self.answers: list[list[Sampled | Failed]] = [[] for _ in WANTED]
        self.tables: dict[int, list[int]] = {}
        self.free = list(range(80))
        self.batch = engine.decode_batch(prompt_tokens=PROMPT_TOKENS)
        self.passes: list[Sequence[PrefillItem]] = []

    def draw(self, lease: int) -> Draw:
        _, sampling, stopping = WANTED[lease]
        output = [answer.token for answer in self.answers[lease] if isinstance(answer, Sampled)]
        return Draw(sampling, stopping, tuple(self.prompts[lease]), tuple(output))

    def item(self, lease: int, start: int, end: int | None) -> PrefillItem:
        draw, prompt = self.draw(lease), self.prompts[lease]
        tokens = [*prompt, *draw.output]
        end = len(tokens) if end is None else end
        table = self.tables.setdefault(lease, [])
        while len(table) * 16 < end:
            table.append(self.free.pop())
        last = draw if end == len(tokens) else None
        return PrefillItem(lease, tokens[start:end], start, np.array(table, np.int32), last, len(prompt))

    def step(self, prompts: Sequence[PrefillItem], *, ahead: bool) -> None:
        for lease in self.batch.wanting_pages():
            self.tables[lease].append(self.free.pop())
            self.batch.grow(lease, self.tables[lease][-1:])
        for lease, outcome in self.batch.step(lambda: None, ahead=ahead, prompts=prompts):
            self.answers[lease].append(outcome)
        self.collect()

    def collect(self) -> None:
        for items, outcomes in self.batch.prompt_outcomes():
            self.passes.append(items)
            for item, outcome in zip(items, outcomes, strict=True):
                assert (outcome is None) == (item.draw is None)
                if outcome is not None:
                    self.answers[item.lease].append(outcome)
                    assert isinstance(outcome, Sampled)
                    assert outcome.end is None
                    context = item.start + len(item.tokens)
                    self.batch.add(item.lease, context, np.array(self.tables[item.lease]), self.draw(item.lease))

    def preempt(self, lease: int) -> None:
        assert self.batch.flying == 1
        self.batch.remove(lease)
        assert self.batch.quiet() == []
        del self.tables[lease]  # its pages stay what they are: the device may still write there


def alone(engine: Engine, made: Run, lease: int) -> list[Sampled | Failed]:
    """What the CPU's engine says, with nothing else beside it."""
    length, sampling, stopping = WANTED[lease]
    prompt, table = made.prompts[lease], np.arange(6)
    draw = Draw(sampling, stopping, tuple(prompt), ())
    [first] = engine.prefill([PrefillItem(lease, prompt, 0, table, draw, length)], lambda: None)
    assert isinstance(first, Sampled)
    batch = engine.decode_batch()
    batch.add(lease, length, table, Draw(sampling, stopping, tuple(prompt), (first.token,)))
    answers: list[Sampled | Failed] = [first]
    while len(batch):
        answers += [outcome for _, outcome in batch.step(lambda: None)]
    return answers


def said(outcome: Sampled | Failed) -> tuple[object, ...]:
    assert isinstance(outcome, Sampled)
    logprob = outcome.logprob and (outcome.logprob.token, pytest.approx(outcome.logprob.logprob, abs=1e-4))
    return outcome.token, outcome.position, outcome.end, logprob


@pytest.mark.parametrize("family", ["llama, dynamic rope", "mistral, sliding window", "qwen3"])
def test_every_answer_is_the_one_of_the_cpus_engine(family: str, engines: Engines) -> None:
    on_cpu, on_gpu = engines(family)
    made = Run(on_gpu)
    number = 0
    launched = []
    while number <= max(SCHEDULE) or len(made.batch) or made.batch.flying:
        if number == AT:
            made.preempt(PREEMPTED)
        if number % 4 == 1:
            made.batch.prepare()
        items = [made.item(*chunk) for chunk in SCHEDULE.get(number, ())]
        launched += [items] if items else []
        made.step(items, ahead=number % 3 != 0)
        number += 1
    assert made.passes == launched, "each is told of once, in order"
    for lease, answers in enumerate(made.answers):
        assert [said(a) for a in answers] == [said(a) for a in alone(on_cpu, made, lease)], (lease, family)


def items_of(count: int, tokens: int) -> list[PrefillItem]:
    return [PrefillItem(lease, [1] * tokens, 0, np.array([lease, 79], np.int32)) for lease in range(count)]


def test_prompts_alone_fly_and_are_told_of_when_they_are_fetched(engines: Engines) -> None:
    _, engine = engines("llama")
    batch = engine.decode_batch(prompt_tokens=8)
    batch.warm()
    items = items_of(1, 8)
    assert batch.step(lambda: None, prompts=items) == []
    assert batch.flying == 1
    assert batch.prompt_outcomes() == []

    assert batch.drain(lambda: None) == []

    assert batch.flying == 0
    assert batch.prompt_outcomes() == [(items, [None])]
    assert batch.prompt_outcomes() == []


def test_refuses_what_its_buffers_do_not_hold(engines: Engines) -> None:
    _, engine = engines("llama")
    batch = engine.decode_batch(prompt_tokens=MIXED_PROMPTS + 1)
    draw = Draw(PLAIN, StoppingParams(max_tokens=5), (), (1,))
    batch.add(0, 3, np.array([0], np.int32), draw)
    with pytest.raises(ValueError, match="lease 0 is in the batch"):
        batch.step(lambda: None, prompts=items_of(1, 3))
    many = items_of(MIXED_PROMPTS + 2, 1)[1:]
    with pytest.raises(ValueError, match=f"{MIXED_PROMPTS + 1} prompts, at most {MIXED_PROMPTS} fit"):
        batch.step(lambda: None, prompts=many)
    with pytest.raises(ValueError, match="66 tokens of prompts, at most 65 fit"):
        batch.step(lambda: None, prompts=items_of(4, 22)[1:])
    assert batch.flying == 0
    with pytest.raises(ValueError, match="made for no prompts"):
        engine.decode_batch().step(lambda: None, prompts=items_of(1, 1))
