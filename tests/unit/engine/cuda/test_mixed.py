"""Prompts inside steps on the GPU's engine, against the CPU's engine with one request at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pytest
import torch

from semipd.core.config import MIXED_PROMPTS
from semipd.core.request import SamplingParams, StoppingParams
from semipd.engine.cuda.decode import CudaDecodeBatch
from semipd.engine.cuda.engine import CudaEngine
from semipd.engine.cuda.launch_args import DEPTH
from semipd.engine.engine import CpuEngine, PrefillItem, TokenOutcome
from semipd.engine.pulse import SilentPulse
from semipd.engine.sampling_result import SampledToken, SamplingInput

Engines = Callable[[str], tuple[CpuEngine, CudaEngine]]
GpuEngine = Callable[[str], tuple[CudaEngine, torch.Tensor]]

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
"""The chunks of each step: lease, start and end; None: with what was sampled before."""
PREEMPTED, AT = 3, 8


def capture(batch: CudaDecodeBatch) -> list[int]:
    """Captures its mixed passes; their buckets, each time that one is run."""
    assert batch.mixed is not None
    graphs, found = batch.mixed.graphs, []
    for bucket, sms in graphs.missing():
        graphs.capture_one(bucket, sms)
    run = graphs.run

    def noted(bucket: int) -> None:
        found.append(bucket)
        run(bucket)

    graphs.run = noted  # type: ignore[method-assign]
    return found


class Run:
    """The schedule on the GPU's engine."""

    def __init__(self, engine: CudaEngine, *, captured: bool = False) -> None:
        rng = np.random.default_rng(1)
        self.prompts = [rng.integers(0, 160, length).tolist() for length, _, _ in WANTED]
        self.answers: list[list[TokenOutcome]] = [[] for _ in WANTED]
        self.tables: dict[int, list[int]] = {}
        self.free = list(range(80))
        self.batch = engine.decode_batch(prompt_tokens=PROMPT_TOKENS)
        self.replayed = capture(self.batch) if captured else []
        self.passes: list[Sequence[PrefillItem]] = []

    def draw(self, lease: int) -> SamplingInput:
        _, sampling, stopping = WANTED[lease]
        output = [answer.token for answer in self.answers[lease] if isinstance(answer, SampledToken)]
        return SamplingInput(sampling, stopping, tuple(self.prompts[lease]), tuple(output))

    def item(self, lease: int, start: int, end: int | None) -> PrefillItem:
        sampling_input, prompt = self.draw(lease), self.prompts[lease]
        tokens = [*prompt, *sampling_input.output]
        end = len(tokens) if end is None else end
        table = self.tables.setdefault(lease, [])
        while len(table) * 16 < end:
            table.append(self.free.pop())
        last = sampling_input if end == len(tokens) else None
        return PrefillItem(lease, tokens[start:end], start, np.array(table, np.int32), last, len(prompt))

    def step(self, prompts: Sequence[PrefillItem], *, ahead: bool) -> None:
        for lease in self.batch.wanting_pages():
            self.tables[lease].append(self.free.pop())
            self.batch.grow(lease, self.tables[lease][-1:])
        for lease, outcome in self.batch.step(SilentPulse(), ahead=ahead, prompts=prompts):
            self.answers[lease].append(outcome)
        self.collect()

    def collect(self) -> None:
        for items, outcomes in self.batch.prompt_outcomes():
            self.passes.append(items)
            for item, outcome in zip(items, outcomes, strict=True):
                assert (outcome is None) == (item.sampling is None)
                if outcome is not None:
                    self.answers[item.lease].append(outcome)
                    assert isinstance(outcome, SampledToken)
                    assert outcome.end is None
                    context = item.start + len(item.tokens)
                    self.batch.add(item.lease, context, np.array(self.tables[item.lease]), self.draw(item.lease))

    def preempt(self, lease: int) -> None:
        assert self.batch.flying == 1
        self.batch.remove(lease)
        assert self.batch.quiet() == []
        del self.tables[lease]  # its pages stay what they are: the device may still write there


def alone(engine: CpuEngine, made: Run, lease: int) -> list[TokenOutcome]:
    """Returns what the CPU's engine says, with nothing else beside it."""
    length, sampling, stopping = WANTED[lease]
    prompt, table = made.prompts[lease], np.arange(6)
    sampling_input = SamplingInput(sampling, stopping, tuple(prompt), ())
    [first] = engine.prefill([PrefillItem(lease, prompt, 0, table, sampling_input, length)], SilentPulse())
    assert isinstance(first, SampledToken)
    batch = engine.decode_batch()
    batch.add(lease, length, table, SamplingInput(sampling, stopping, tuple(prompt), (first.token,)))
    answers: list[TokenOutcome] = [first]
    while len(batch):
        answers += [outcome for _, outcome in batch.step(SilentPulse())]
    return answers


def said(outcome: TokenOutcome) -> tuple[object, ...]:
    assert isinstance(outcome, SampledToken)
    logprob = outcome.logprob and (outcome.logprob.token, pytest.approx(outcome.logprob.logprob, abs=1e-4))
    return outcome.token, outcome.position, outcome.end, logprob


@pytest.mark.parametrize(
    ("family", "captured"),
    [
        # Prompts that are rotated as a whole are launched kernel by kernel.
        pytest.param("llama, dynamic rope", 5, marks=pytest.mark.thorough),
        pytest.param("mistral, sliding window", 0, marks=pytest.mark.thorough),
        ("qwen2, tied, windows above the first layer", 8),
        pytest.param("qwen3", 0, marks=pytest.mark.thorough),
    ],
)
def test_every_answer_is_the_one_of_the_cpus_engine(family: str, captured: int, engines: Engines) -> None:
    on_cpu, on_gpu = engines(family)
    made = Run(on_gpu, captured=captured > 0)
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
    assert len(made.replayed) == captured
    for lease, answers in enumerate(made.answers):
        assert [said(a) for a in answers] == [said(a) for a in alone(on_cpu, made, lease)], (lease, family)


def items_of(count: int, tokens: int) -> list[PrefillItem]:
    return [PrefillItem(lease, [1] * tokens, 0, np.array([lease, 79], np.int32)) for lease in range(count)]


def test_prompts_alone_fly_and_are_told_of_when_they_are_fetched(engines: Engines) -> None:
    _, engine = engines("llama")
    batch = engine.decode_batch(prompt_tokens=8)
    batch.warm()
    items = items_of(1, 8)
    assert batch.step(SilentPulse(), prompts=items) == []
    assert batch.flying == 1
    assert batch.prompt_outcomes() == []

    assert batch.drain(SilentPulse()) == []

    assert batch.flying == 0
    assert batch.prompt_outcomes() == [(items, [None])]
    assert batch.prompt_outcomes() == []


def test_refuses_what_its_buffers_do_not_hold(engines: Engines) -> None:
    _, engine = engines("llama")
    batch = engine.decode_batch(prompt_tokens=MIXED_PROMPTS + 1)
    sampling_input = SamplingInput(PLAIN, StoppingParams(max_tokens=5), (), (1,))
    batch.add(0, 3, np.array([0], np.int32), sampling_input)
    with pytest.raises(ValueError, match="lease 0 is in the batch"):
        batch.step(SilentPulse(), prompts=items_of(1, 3))
    many = items_of(MIXED_PROMPTS + 2, 1)[1:]
    with pytest.raises(ValueError, match=f"{MIXED_PROMPTS + 1} prompts, at most {MIXED_PROMPTS} fit"):
        batch.step(SilentPulse(), prompts=many)
    with pytest.raises(ValueError, match="66 tokens of prompts, at most 65 fit"):
        batch.step(SilentPulse(), prompts=items_of(4, 22)[1:])
    assert batch.flying == 0
    with pytest.raises(ValueError, match="made for no prompts"):
        engine.decode_batch().step(SilentPulse(), prompts=items_of(1, 1))


# --- captured passes ------------------------------------------------------------------------------------------------


def test_a_captured_pass_leaves_in_the_pool_what_the_other_does(gpu_engine: GpuEngine) -> None:
    pools, answers = [], []
    for captured in (False, True):
        engine, pool = gpu_engine("mistral, sliding window")
        made = Run(engine, captured=captured)
        for number in range(5):
            made.step([made.item(*chunk) for chunk in SCHEDULE.get(number, ())], ahead=number == 3)
        assert len(made.replayed) == (4 if captured else 0)
        pools.append(pool)
        answers.append([[said(answer) for answer in each] for each in made.answers])
    assert answers[0] == answers[1]
    assert pools[0].isnan().any()
    torch.testing.assert_close(pools[1], pools[0], rtol=1e-4, atol=1e-5, equal_nan=True)


def test_neither_warming_nor_capturing_writes_to_the_pool_or_is_heard_of(gpu_engine: GpuEngine) -> None:
    engine, pool = gpu_engine("qwen3")
    batch = engine.decode_batch(prompt_tokens=8)
    said: list[tuple[int, int]] = []
    batch.warm()
    batch.capture.run(60.0, lambda done, total: said.append((done, total)))
    assert pool.isnan().all()
    assert batch.mixed is not None
    assert batch.mixed.graphs.captured == 1
    total = batch.graphs.total + 1
    assert said == [(number, total) for number in range(1, total + 1)]
    assert (batch.flying, batch.prompt_outcomes()) == (0, [])


@pytest.mark.thorough
def test_what_earlier_passes_said_is_nothing_to_a_later_one(gpu_engine: GpuEngine) -> None:
    engine, pool = gpu_engine("llama")
    batch = engine.decode_batch(prompt_tokens=PROMPT_TOKENS)
    replayed = capture(batch)
    pool.zero_()
    sampling_input = SamplingInput(PLAIN, StoppingParams(max_tokens=100), (), (1,))
    for lease in range(6):
        batch.add(lease, 20, np.array([2 * lease, 2 * lease + 1], np.int32), sampling_input)
    long = PrefillItem(6, [1] * PROMPT_TOKENS, 0, np.array([20, 21, 22], np.int32), sampling_input)
    for _ in range(DEPTH):  # as many as there are commands in turn
        batch.step(SilentPulse(), prompts=[long])
    batch.drain(SilentPulse())
    batch.prompt_outcomes()
    for lease in range(6):
        batch.remove(lease)
    batch.quiet()
    pool.fill_(torch.nan)

    short = PrefillItem(7, [5, 6, 7], 0, np.array([40], np.int32), sampling_input)
    batch.step(SilentPulse(), prompts=[short], ahead=False)

    assert len(replayed) == DEPTH + 1
    [(_, [outcome])] = batch.prompt_outcomes()
    assert isinstance(outcome, SampledToken)
    written = ~pool.isnan().all(-1).all(-1)  # [layers, pages, 2, PAGE_SIZE]
    expected = torch.zeros_like(written)
    expected[:, 40, :, :3] = True
    assert torch.equal(written, expected)


def test_passes_of_few_tokens_and_little_context_have_graphs(engines: Engines) -> None:
    def chunk(tokens: int, start: int = 0, prompt_tokens: int | None = None) -> PrefillItem:
        return PrefillItem(0, [1] * tokens, start, np.zeros(200, np.int32), None, prompt_tokens)

    mixed = engines("qwen3")[1].decode_batch(prompt_tokens=1500).mixed
    assert mixed is not None
    assert mixed.graphs.total == 14
    assert [mixed.bucket(rows, [chunk(tokens)]) for rows, tokens in ((0, 1), (7, 57), (7, 58), (7, 505))] == [
        64,
        64,
        96,
        512,
    ]
    assert mixed.bucket(7, [chunk(1017)]) == 1024
    assert mixed.bucket(7, [chunk(1018)]) is None, "the device takes longer than the launches"
    assert mixed.bucket(7, [chunk(10, 1014)]) == 64
    assert mixed.bucket(7, [chunk(10, 1015)]) is None, "faster attention counts for more"
    assert mixed.bucket(7, [chunk(512, 1536)]) == 576
    assert mixed.bucket(7, [chunk(512, 1537)]) is None
    assert mixed.bucket(0, [chunk(1)] * MIXED_PROMPTS) == 64
    small = engines("llama, dynamic rope")[1].decode_batch(prompt_tokens=100).mixed
    assert small is not None
    assert [small.bucket(7, [chunk(tokens)]) for tokens in (57, 89, 90, 100)] == [64, 96, 107, 107]
    assert small.bucket(7, [chunk(20, 0, 100)]) is None, "its rotation is its own"
