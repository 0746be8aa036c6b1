"""The GPU's engine against the CPU's, request by request: on a CPU, with kernels interpreted and streams played."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import count
from typing import Any

import numpy as np
import pytest

from semipd.core.request import SamplingParams, StoppingParams
from semipd.engine.batch import CpuDecodeBatch
from semipd.engine.cuda import graphs as cuda_graphs
from semipd.engine.cuda.decode import CudaDecodeBatch
from semipd.engine.cuda.engine import CudaEngine
from semipd.engine.engine import CpuEngine, PrefillItem, TokenOutcome
from semipd.engine.pulse import SilentPulse
from semipd.engine.sampling_result import SampledToken, SamplingInput

Engines = Callable[[str], tuple[CpuEngine, CudaEngine]]

PAGES = 80
CHOSEN = (
    "llama, biases and explicit head_dim",
    "llama, dynamic rope",
    "mistral, sliding window",
    "qwen2, tied, windows above the first layer",
    "qwen3",
)


Wanted = tuple[SamplingParams, StoppingParams]
PLAIN = SamplingParams(temperature=0.0)
WANTED: Sequence[Wanted] = (
    (PLAIN, StoppingParams(max_tokens=9)),
    (SamplingParams(temperature=1.0, seed=7), StoppingParams(max_tokens=20)),
    (SamplingParams(temperature=0.9, top_k=20, top_p=0.8, min_p=0.01, seed=3), StoppingParams(max_tokens=14)),
    (SamplingParams(temperature=0.0, repetition_penalty=1.3, frequency_penalty=0.1), StoppingParams(max_tokens=12)),
    (SamplingParams(temperature=0.7, seed=5, logit_bias={3: 2.0}), StoppingParams(max_tokens=5)),
    (SamplingParams(temperature=0.0, logprobs=True, top_logprobs=3), StoppingParams(max_tokens=16)),
    (PLAIN, StoppingParams(max_tokens=30, min_tokens=4, stop_token_ids=frozenset(range(0, 160, 3)))),
)
LENGTHS = (5, 16, 17, 40, 33, 3, 70)
HELD: Mapping[int, set[int]] = {2: {1}, 4: {0, 3}, 5: {0, 3}, 7: set(range(7)), 8: {1, 2}, 9: {4}, 10: {4, 5}}
"""Leases that a step leaves out, by the step's number."""


class Run:
    """All requests through one engine, in the same order of events whatever the engine is."""

    def __init__(self, engine: Any) -> None:
        self.engine = engine
        self.free = list(range(PAGES))
        rng = np.random.default_rng(1)
        self.prompts = [rng.integers(0, 160, n).tolist() for n in LENGTHS]
        self.answers: dict[int, list[TokenOutcome]] = {lease: [] for lease in range(len(WANTED))}
        self.batch: CpuDecodeBatch | CudaDecodeBatch = engine.decode_batch()
        self.tables: list[np.ndarray[Any, np.dtype[np.int32]]] = []

    def draw(self, lease: int, output: tuple[int, ...] = ()) -> SamplingInput:
        sampling, stopping = WANTED[lease]
        return SamplingInput(sampling, stopping, tuple(self.prompts[lease]), output)

    def prefill(self, parts: Sequence[Sequence[tuple[int, int, int]]]) -> None:
        """Passes of (lease, start, end)."""
        for prompt in self.prompts:
            self.tables.append(np.array([self.free.pop() for _ in range(-(-len(prompt) // 16))], np.int32))
        for part in parts:
            items = []
            for lease, start, end in part:
                prompt = self.prompts[lease]
                last = end == len(prompt)
                sampling_input = self.draw(lease) if last else None
                items.append(
                    PrefillItem(lease, prompt[start:end], start, self.tables[lease], sampling_input, len(prompt))
                )
            pending = self.engine.prepare_prefill(items)
            pending.launch()
            for item, outcome in zip(items, pending.finish(SilentPulse()), strict=True):
                if outcome is not None:
                    self.answers[item.lease].append(outcome)

    def join(self, lease: int) -> None:
        [first] = self.answers[lease]
        assert isinstance(first, SampledToken)
        if first.end is None:
            self.batch.add(lease, len(self.prompts[lease]), self.tables[lease], self.draw(lease, (first.token,)))

    def step(self, *, ahead: bool) -> None:
        for lease in self.batch.wanting_pages():
            self.batch.grow(lease, [self.free.pop()])
        for lease, outcome in self.batch.step(SilentPulse(), ahead=ahead):
            self.answers[lease].append(outcome)


def run(engine: Any, held: Mapping[int, set[int]] | None = None) -> Run:
    """Plays all requests to their end; `held` are the leases that each step leaves out."""
    made = Run(engine)
    whole = [(lease, 0, n) for lease, n in enumerate(LENGTHS)]
    made.prefill([whole[:3], [(3, 0, 13), whole[5]], [(3, 13, 40)], [whole[4]], [(6, 0, 64)], [(6, 64, 70)]])
    for lease in range(4):
        made.join(lease)
    for number in range(40):
        made.batch.hold((held or {}).get(number, ()))
        if number == 3:
            for lease in range(4, len(WANTED)):
                made.join(lease)
        if number % 4 == 1:
            made.batch.prepare()
        made.step(ahead=number % 3 != 0)
    assert len(made.batch) == 0
    return made


def said(outcome: TokenOutcome) -> tuple[object, ...]:
    assert isinstance(outcome, SampledToken)
    logprob = outcome.logprob and (outcome.logprob.token, pytest.approx(outcome.logprob.logprob, abs=1e-4))
    return outcome.token, outcome.position, outcome.end, logprob


@pytest.mark.parametrize("family", [*CHOSEN[:1], *(pytest.param(f, marks=pytest.mark.thorough) for f in CHOSEN[1:])])
def test_every_answer_is_the_one_of_the_cpus_engine(family: str, engines: Engines) -> None:
    """The GPU's steps leave sequences out now and then, which changes no answer."""
    on_cpu, on_gpu = engines(family)
    expected, found = run(on_cpu), run(on_gpu, HELD)
    for lease, answers in expected.answers.items():
        assert [said(a) for a in found.answers[lease]] == [said(a) for a in answers], (lease, family)


def test_answers_are_the_same_in_a_larger_bucket_than_need_be(
    engines: Engines, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_cpu, on_gpu = engines("mistral, sliding window")
    times_ms = count(1.0)  # what is captured and timed first, the largest, is the fastest
    monkeypatch.setattr(cuda_graphs, "replays_ms", lambda graphs, *_: [next(times_ms) for _ in graphs])
    expected, found = Run(on_cpu), Run(on_gpu)
    prefill, batch = on_gpu.open_prefill(), found.batch
    assert isinstance(batch, CudaDecodeBatch)
    for graphs, buckets in ((prefill.graphs, (32, 16)), (batch.graphs, (7, 2, 1))):
        for bucket in buckets:
            graphs.capture_one(bucket, on_gpu.streams.all)
    assert [prefill.graphs.bucket(tokens) for tokens in (1, 16)] == [32, 32]
    assert [batch.graphs.bucket(rows) for rows in (1, 2)] == [7, 7]
    for made in (expected, found):
        made.prefill([[(0, 0, 5), (1, 0, 11)], [(1, 11, 16)]])
        for lease in (0, 1):
            made.join(lease)
            made.step(ahead=False)
    for lease, answers in expected.answers.items():
        assert [said(a) for a in found.answers[lease]] == [said(a) for a in answers], lease
    assert [len(found.answers[lease]) for lease in (0, 1)] == [3, 2]


def test_a_lease_is_quiet_when_no_step_on_the_device_knows_it(engines: Engines) -> None:
    _, engine = engines("llama")
    made = Run(engine)
    made.prefill([[(0, 0, 5), (1, 0, 16)]])
    made.join(0)
    made.batch.remove(0)
    assert made.batch.quiet() == [0], "it was never in a step"
    made.join(1)
    made.step(ahead=True)
    made.batch.remove(1)
    assert made.batch.quiet() == []
    assert made.batch.drain(SilentPulse()) == [], "its token is thrown away"
    assert made.batch.quiet() == [1]


def test_a_full_batch_takes_no_more(engines: Engines) -> None:
    _, engine = engines("llama")
    batch = engine.decode_batch()
    sampling_input = SamplingInput(PLAIN, StoppingParams(max_tokens=5), (), (1,))
    for lease in range(7):
        batch.add(lease, 3, np.array([lease], np.int32), sampling_input)
    with pytest.raises(ValueError, match="7 of 7 rows"):
        batch.add(7, 3, np.array([7], np.int32), sampling_input)
