"""Sampling on the device says what the CPU's sampler says of the same logits."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from semipd.core.request import EndReason, SamplingParams, StoppingParams
from semipd.engine.engine import SampledToken, SequenceFailure
from semipd.engine.sampling import SequenceSampler, choose_tokens
from support.device_rig import Rig
from support.outcomes import end_of, logprob_of, sampled
from support.reference import random_tokens
from support.wish import Wish

pytestmark = pytest.mark.gpu

TYPES = [pytest.param(torch.float32, id="float32"), pytest.param(torch.bfloat16, id="bfloat16")]
PROMPT = random_tokens(5)
STEPS = 40
STOP_LATE = StoppingParams(100)
KINDS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "plain": {},
    "cool": {"temperature": 0.4},
    "hot": {"temperature": 1.9},
    "top-k": {"top_k": 7},
    "top-p": {"top_p": 0.8},
    "min-p": {"min_p": 0.15},
    "all filters": {"temperature": 1.4, "top_k": 60, "top_p": 0.9, "min_p": 0.02},
    "repetition": {"repetition_penalty": 1.4},
    "frequency and presence": {"frequency_penalty": 0.6, "presence_penalty": 0.9, "temperature": 0.8},
    "greedy, penalised": {"temperature": 0.0, "repetition_penalty": 1.3, "presence_penalty": 1.5},
    "bias": {"logit_bias": {token: (-1) ** token * (token % 9) for token in range(60, 160)}, "top_k": 40},
    "everything": {
        "temperature": 1.2,
        "top_p": 0.95,
        "repetition_penalty": 0.9,
        "frequency_penalty": -0.3,
        "logit_bias": {3: 4.0, 9: -100.0},
        "logprobs": True,
        "top_logprobs": 3,
    },
}
ROWS_OF_A_KIND = 4


def params(kind: str, seed: int) -> SamplingParams:
    return SamplingParams(seed=seed * 0x9E3779B97F4A7C15 % 2**64, **KINDS[kind])


def banned_at_first(row: int) -> StoppingParams:
    """Some rows must not stop for a while, at tokens that they would like."""
    if row % 3:
        return StoppingParams(STEPS + 10)
    return StoppingParams(STEPS + 10, min_tokens=STEPS + 5, stop_token_ids=frozenset(range(0, 515, 2)))


@pytest.mark.parametrize("dtype", TYPES)
def test_draws_as_the_cpu_does_from_the_same_logits(dtype: torch.dtype, rig: Callable[..., Rig]) -> None:
    made = rig(dtype=dtype, pages=400, capture=True)
    kinds = {}
    for row, kind in enumerate(kind for kind in KINDS for _ in range(ROWS_OF_A_KIND)):
        lease = made.adopt(random_tokens(5 + row % 30, row), row, params(kind, row), banned_at_first(row))
        kinds[lease] = kind
    seen = []
    for _ in range(STEPS):
        order = made.batch.leases()
        made.step()
        seen.append((order, made.batch.last_logits().float().cpu()))
    made.settle()

    agreed: dict[str, list[bool]] = {kind: [] for kind in KINDS}
    for step, (order, logits) in enumerate(seen):
        samplers = []
        for lease in order:
            wish, tokens = made.answers[lease].wish, made.answers[lease].tokens
            output = (*wish.output, *tokens[:step])
            samplers.append(SequenceSampler(wish.sampling, wish.stopping, wish.prompt, output, made.model.vocab_size))
        chosen = choose_tokens(logits[: len(order)], samplers, [1 + step] * len(order))
        for lease, choice in zip(order, chosen, strict=True):
            agreed[kinds[lease]].append(choice.token == made.answers[lease].tokens[step])
    rates = {kind: sum(each) / len(each) for kind, each in agreed.items()}
    assert sum(map(sum, agreed.values())) > 0.995 * STEPS * len(kinds), rates
    assert min(rates.values()) > 0.98, rates


@pytest.mark.parametrize("kind", ["plain", "cool", "top-k", "top-p", "min-p", "all filters"])
def test_first_tokens_follow_the_distribution(kind: str, rig: Callable[..., Rig]) -> None:
    """Pearson's chi-squared over a small vocabulary, against the formulas; and never a token that is filtered out."""
    made = rig(changes={"vocab_size": 48}, pages=256)
    prompt = random_tokens(4, vocab=48)
    probabilities = distribution(made.forced([prompt])[0][-1].double(), **KINDS[kind])
    draws = 2000

    counts = torch.zeros(48, dtype=torch.float64)
    for first in range(0, draws, 200):
        wishes = [Wish(prompt, params(kind, seed), StoppingParams(1)) for seed in range(first, first + 200)]
        for answer in made.admit(wishes):
            counts[answer.tokens[0]] += 1

    assert counts[probabilities == 0].sum() == 0
    expected = probabilities * draws
    often = expected >= 5
    bins = [*zip(counts[often], expected[often], strict=True), (counts[~often].sum(), expected[~often].sum())]
    statistic = sum(float((got - wanted) ** 2 / wanted) for got, wanted in bins if wanted > 0)
    freedom = len(bins) - 1
    assert statistic < freedom + 4 * math.sqrt(2 * freedom) + 4, (statistic, freedom)
    assert made.pages_held == 0


def distribution(
    logits: torch.Tensor, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0
) -> torch.Tensor:
    """Returns a row's distribution. Each filter is a threshold on the logits that the one before left."""
    scaled = logits / temperature
    if top_k:
        scaled = scaled.masked_fill(scaled < scaled.sort(descending=True).values[:top_k][-1], -math.inf)
    if top_p < 1:
        order = scaled.argsort(descending=True)
        reached = scaled.softmax(-1)[order].cumsum(-1)
        kept = int((reached - scaled.softmax(-1)[order] < top_p).sum())
        scaled = scaled.masked_fill(scaled < scaled[order[kept - 1]], -math.inf)
    if min_p > 0:
        scaled = scaled.masked_fill(scaled < scaled.max() + math.log(min_p), -math.inf)
    return scaled.softmax(-1)


@pytest.mark.parametrize("kind", ["plain", "all filters", "repetition", "everything"])
def test_a_seeded_request_gives_the_same_tokens_alone_in_a_batch_and_resumed(
    kind: str, rig: Callable[..., Rig]
) -> None:
    wish = Wish(PROMPT, params(kind, 77), StoppingParams(40))
    alone = rig().run([wish])[0].tokens
    others = [Wish(random_tokens(i), params("hot", i), StoppingParams(3 * i)) for i in range(1, 31)]
    late = Wish(PROMPT, wish.sampling, wish.stopping, chunks=(2,), joins_at=4)

    batched = rig(pages=300).run([*others[:20], late, *others[20:]])[20].tokens
    resumed = rig().run([Wish(PROMPT, wish.sampling, wish.stopping, output=tuple(alone[:13]))])[0].tokens

    assert batched == alone
    assert resumed == alone[13:]
    assert len(set(alone)) > 10


@pytest.mark.parametrize("dtype", TYPES)
def test_logprobs_are_of_the_raw_distribution(dtype: torch.dtype, rig: Callable[..., Rig]) -> None:
    made = rig(dtype=dtype)
    wants: list[tuple[int, dict[str, Any]]] = [(0, {}), (1, {"temperature": 0.0}), (20, {})]
    wants.append((5, {"temperature": 0.6, "logit_bias": {11: 100.0}}))
    leases = [
        made.adopt(random_tokens(9, n), n, SamplingParams(seed=n, logprobs=True, top_logprobs=n, **more), STOP_LATE)
        for n, more in wants
    ]
    plain = made.adopt(PROMPT, 4, SamplingParams(seed=1), STOP_LATE)
    order = made.batch.leases()
    made.step()
    raw = dict(zip(order, made.batch.last_logits().float().cpu().log_softmax(-1), strict=False))
    made.settle()

    assert sampled(made.answers[plain].steps[0]).logprob is None
    for lease, (count, _) in zip(leases, wants, strict=True):
        token = sampled(made.answers[lease].steps[0]).token
        logprob = logprob_of(made.answers[lease].steps[0])
        wanted = raw[lease].topk(max(1, count)).values[:count]
        assert logprob.token == token
        assert logprob.logprob == pytest.approx(float(raw[lease][token]), abs=2e-3)
        assert [value for _, value in logprob.top] == pytest.approx(wanted.tolist(), abs=2e-3)
        for other, value in logprob.top:
            assert value == pytest.approx(float(raw[lease][other]), abs=2e-3)


def test_first_tokens_have_logprobs_too(rig: Callable[..., Rig]) -> None:
    made = rig()
    raw = made.forced([PROMPT])[0][-1].log_softmax(-1)
    wish = Wish(PROMPT, SamplingParams(temperature=0.0, logprobs=True, top_logprobs=2), StoppingParams(1))

    (step,) = made.admit([wish])[0].steps

    logprob = logprob_of(step)
    assert sampled(step).token == logprob.token == logprob.top[0][0] == int(raw.argmax())
    assert logprob.top[1][1] == pytest.approx(float(raw.topk(2).values[1]), abs=1e-3)


# --- ends -----------------------------------------------------------------------------------------------------------


def test_ends_after_max_tokens_and_nothing_is_said_after(rig: Callable[..., Rig]) -> None:
    counts = (1, 2, 3, 5, 20)
    made = rig()

    answers = made.run([Wish(PROMPT, stopping=StoppingParams(count)) for count in counts])

    assert [len(answer.tokens) for answer in answers] == list(counts)
    assert {end_of(answer.steps[-1]).reason for answer in answers} == {EndReason.LENGTH}
    assert made.pages_held == 0
    assert len(made.batch) == 0


def test_ends_at_a_stop_token_even_the_last_one_allowed(rig: Callable[..., Rig]) -> None:
    tokens = rig().run([Wish(PROMPT)])[0].tokens
    place = next(i for i, token in enumerate(tokens) if i > 2 and token not in tokens[:i])
    stop = frozenset({tokens[place], 100_000})

    exact, early = rig().run([Wish(PROMPT, stopping=StoppingParams(n, stop_token_ids=stop)) for n in (place + 1, 90)])

    for answer in (exact, early):
        assert answer.tokens == tokens[: place + 1]
        assert end_of(answer.steps[-1]).reason is EndReason.STOP_TOKEN
        assert end_of(answer.steps[-1]).stop_token_id == tokens[place]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_banned_stop_token_is_drawn_as_soon_as_it_may_be(temperature: float, rig: Callable[..., Rig]) -> None:
    sampling = SamplingParams(temperature=temperature, seed=3, logit_bias={17: 100.0})
    stopping = StoppingParams(30, min_tokens=6, stop_token_ids=frozenset({17, 18}))

    answer = rig().run([Wish(PROMPT, sampling, stopping)])[0]

    assert not {17, 18} & set(answer.tokens[:6])
    assert (len(answer.tokens), answer.tokens[6]) == (7, 17)
    assert end_of(answer.steps[-1]).reason is EndReason.STOP_TOKEN


# --- rows that can't be computed ------------------------------------------------------------------------------------

POISON = 77


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("kind", ["greedy", "all filters", "everything"])
def test_a_row_that_is_not_finite_fails_alone(kind: str, dtype: torch.dtype, rig: Callable[..., Rig]) -> None:
    """Its pages, full of NaN, serve the next sequence as any others do."""

    def never_poison(seed: int) -> SamplingParams:
        sampling = params(kind, seed)
        bias = {**sampling.logit_bias, POISON: -100.0}
        return SamplingParams(seed=sampling.seed, **{**KINDS[kind], "logit_bias": bias})

    wishes = [Wish([t for t in random_tokens(n, n) if t != POISON], never_poison(n), STOP_LATE) for n in (9, 20, 40)]
    expected = [answer.tokens for answer in rig(dtype=dtype).run(wishes)]
    made = rig(dtype=dtype, pages=24)
    made.weights["embed"][POISON] = math.nan

    answers = made.admit(wishes)
    bad = made.adopt([1, 2, 3], POISON, params(kind, 1), STOP_LATE)
    (bad_prompt,) = made.admit([Wish([5, POISON, 6], params(kind, 2), STOP_LATE)])
    while len(made.batch):
        made.step()
    made.settle()

    for failed in (made.answers[bad].steps, bad_prompt.steps):
        [failure] = failed
        assert isinstance(failure, SequenceFailure)
        assert "finite" in failure.error
    assert all(isinstance(step, SampledToken) for answer in answers for step in answer.steps)
    if dtype is torch.float32:  # in bfloat16 another batch size may round a draw to the neighbour
        assert [answer.tokens for answer in answers] == expected
    assert [len(answer.tokens) for answer in answers] == [100, 100, 100]
    assert made.pages_held == 0


def test_failures_among_many_prompts_of_one_pass(rig: Callable[..., Rig]) -> None:
    made = rig()
    made.weights["embed"][POISON] = math.nan
    prompts = [[token, POISON if token % 3 == 0 else token + 1] for token in range(12)]

    answers = made.admit([Wish(prompt, stopping=StoppingParams(1)) for prompt in prompts])

    assert [isinstance(answer.steps[0], SequenceFailure) for answer in answers] == [
        token % 3 == 0 for token in range(12)
    ]
