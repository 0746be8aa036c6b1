"""Sampling against formulas written out row by row."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from semipd.core.request import SamplingParams, StoppingParams
from semipd.engine.counter_rng import uniforms
from semipd.engine.sampling import SequenceSampler, choose_tokens, draw

VOCAB = 50
DRAWS = 4000


def logits_of(rows: int = 1, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, VOCAB, generator=torch.Generator().manual_seed(seed)) * 2


def sampler(
    prompt: tuple[int, ...] = (), output: tuple[int, ...] = (), stopping: StoppingParams | None = None, **params: Any
) -> SequenceSampler:
    return SequenceSampler(SamplingParams(**params), stopping or StoppingParams(100), prompt, output, VOCAB)


def frequencies(row: torch.Tensor, **params: Any) -> torch.Tensor:
    """Returns how often each token is drawn at evenly spread points: the distribution, to within 1 / DRAWS."""
    chance = (torch.arange(DRAWS, dtype=torch.float64) + 0.5) / DRAWS
    tokens = draw(row.expand(DRAWS, -1), [SamplingParams(**params)] * DRAWS, chance)
    return torch.bincount(tokens, minlength=VOCAB) / DRAWS


def assert_close(got: torch.Tensor, wanted: Sequence[float]) -> None:
    assert (got - torch.tensor(wanted)).abs().max() < 2 / DRAWS


def softmax(values: Sequence[float]) -> list[float]:
    top = max(values)
    exps = [math.exp(v - top) for v in values]
    return [e / sum(exps) for e in exps]


def renormalise(probabilities: Sequence[float], keep: Sequence[int]) -> list[float]:
    kept = [p if i in keep else 0.0 for i, p in enumerate(probabilities)]
    return [p / sum(kept) for p in kept]


def by_probability(probabilities: Sequence[float]) -> list[int]:
    return sorted(range(VOCAB), key=lambda i: -probabilities[i])


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.0])
def test_temperature_divides_the_logits(temperature: float) -> None:
    row = logits_of()

    got = frequencies(row, temperature=temperature)

    assert_close(got, softmax([v / temperature for v in row[0].tolist()]))


@pytest.mark.parametrize("top_k", [1, 5, VOCAB, 2 * VOCAB])
def test_top_k_keeps_the_likeliest(top_k: int) -> None:
    row = logits_of()
    probabilities = softmax(row[0].tolist())

    got = frequencies(row, top_k=top_k)

    assert_close(got, renormalise(probabilities, by_probability(probabilities)[:top_k]))


@pytest.mark.parametrize("top_p", [0.01, 0.5, 0.9])
def test_top_p_keeps_the_smallest_set_that_reaches_it(top_p: float) -> None:
    row = logits_of()
    probabilities = softmax(row[0].tolist())
    keep, reached = [], 0.0
    for token in by_probability(probabilities):
        if reached >= top_p:
            break
        keep.append(token)
        reached += probabilities[token]

    assert_close(frequencies(row, top_p=top_p), renormalise(probabilities, keep))


def test_min_p_is_relative_to_the_likeliest() -> None:
    row = logits_of(seed=4)
    probabilities = softmax(row[0].tolist())
    keep = [i for i, p in enumerate(probabilities) if p >= 0.1 * max(probabilities)]

    assert 1 < len(keep) < VOCAB
    assert_close(frequencies(row, min_p=0.1), renormalise(probabilities, keep))


def test_a_nucleus_wider_than_the_first_candidates_is_found_whole() -> None:
    flat = torch.randn(2, 3000, generator=torch.Generator().manual_seed(0)) * 0.01
    params = [SamplingParams(top_p=0.5), SamplingParams(top_p=0.001)]
    chance = torch.tensor([0.25, 0.25], dtype=torch.float64)
    order = flat[0].argsort(descending=True)
    nucleus = order[: int((flat[0].softmax(-1)[order].cumsum(-1) < 0.5).sum()) + 1].sort().values

    tokens = draw(flat, params, chance)

    assert len(nucleus) > 1000
    cumulative = flat[0][nucleus].softmax(-1).cumsum(-1)
    assert int(tokens[0]) == int(nucleus[int((cumulative < 0.25).sum())])
    assert flat[1][tokens[1]] >= flat[1].sort(descending=True).values[5]


def test_filters_apply_in_order_each_to_what_the_one_before_left() -> None:
    row = logits_of(seed=4)
    probabilities = softmax([v / 1.5 for v in row[0].tolist()])
    order = by_probability(probabilities)[:10]
    left = renormalise(probabilities, order)
    keep, reached = [], 0.0
    for token in order:
        if reached >= 0.8:
            break
        keep.append(token)
        reached += left[token]
    keep = [token for token in keep if probabilities[token] >= 0.2 * max(probabilities)]

    got = frequencies(row, temperature=1.5, top_k=10, top_p=0.8, min_p=0.2)

    assert_close(got, renormalise(probabilities, keep))


def test_rows_with_different_filters_do_not_mix() -> None:
    rows = logits_of(4)
    params = [
        SamplingParams(top_k=3),
        SamplingParams(),
        SamplingParams(top_p=0.4, temperature=0.5),
        SamplingParams(min_p=0.3, top_k=20),
    ]
    chance = torch.tensor([0.2, 0.5, 0.7, 0.999], dtype=torch.float64)

    together = draw(rows, params, chance)

    for row in range(4):
        assert together[row] == draw(rows[row : row + 1], params[row : row + 1], chance[row : row + 1])[0]


@pytest.mark.parametrize("chance", [0.0, 1.0 - 2**-53])
def test_the_ends_of_chance_never_draw_an_impossible_token(chance: float) -> None:
    row = logits_of()
    row[0, [0, VOCAB - 1]] = -torch.inf

    token = int(draw(row, [SamplingParams()], torch.tensor([chance], dtype=torch.float64))[0])

    assert 0 < token < VOCAB - 1


def test_penalties_follow_their_formulas() -> None:
    row = logits_of(seed=2)
    prompt, output = (1, 2, 3), (3, 3, 4)
    params: dict[str, Any] = {
        "repetition_penalty": 1.3,
        "frequency_penalty": 0.4,
        "presence_penalty": 0.7,
        "logit_bias": {2: 5.0, 9: -3},
    }
    wanted = row[0].clone()
    wanted[2] += 5.0
    wanted[9] -= 3
    for token in set(prompt + output):
        wanted[token] = wanted[token] / 1.3 if wanted[token] > 0 else wanted[token] * 1.3
    for token in set(output):
        wanted[token] -= 0.4 * output.count(token) + 0.7

    got = row[0].clone()
    sampler(prompt, output, **params).adjust(got, position=3)

    torch.testing.assert_close(got, wanted)


def test_penalties_know_the_tokens_sampled_since() -> None:
    sequence = sampler(output=(5,), temperature=0.0, presence_penalty=1.0)
    row = torch.zeros(1, VOCAB)
    row[0, 7], row[0, 8] = 0.9, 0.5

    first = choose_tokens(row, [sequence], [1])[0].token
    assert first is not None
    sequence.took(first)
    second = choose_tokens(row, [sequence], [2])[0].token

    assert (first, second) == (7, 8)


def test_greedy_takes_the_likeliest_after_bias() -> None:
    row = logits_of()

    chosen = choose_tokens(
        row.repeat(2, 1), [sampler(temperature=0.0), sampler(temperature=0.0, logit_bias={3: 100.0})], [0, 0]
    )

    assert [c.token for c in chosen] == [int(row.argmax()), 3]


def test_stop_tokens_cannot_be_drawn_before_min_tokens() -> None:
    row = torch.zeros(1, VOCAB)
    row[0, 6] = 20.0
    stopping = StoppingParams(100, min_tokens=3, stop_token_ids=frozenset({6}))

    cases: tuple[dict[str, Any], ...] = ({"temperature": 0.0}, {"temperature": 1.0, "seed": 5})
    for params in cases:
        tokens = [choose_tokens(row, [sampler(stopping=stopping, **params)], [at])[0].token for at in range(4)]
        assert [token == 6 for token in tokens] == [False, False, False, True]


def test_logprobs_are_of_the_raw_distribution() -> None:
    row = logits_of(seed=3)
    raw = row[0].log_softmax(-1)
    wants = sampler(temperature=0.5, logit_bias={11: 100.0}, logprobs=True, top_logprobs=3)
    plain = sampler(temperature=0.0)

    got, none = choose_tokens(row.repeat(2, 1), [wants, plain], [0, 0])

    assert none.logprob is None
    assert got.logprob is not None
    assert got.logprob.token == got.token == 11
    assert got.logprob.logprob == pytest.approx(float(raw[11]), abs=1e-5)
    assert [token for token, _ in got.logprob.top] == raw.topk(3).indices.tolist()
    assert [value for _, value in got.logprob.top] == pytest.approx(raw.topk(3).values.tolist(), abs=1e-5)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_row_that_is_not_finite_fails_alone(bad: float, temperature: float) -> None:
    rows = logits_of(3)
    params: dict[str, Any] = {"temperature": temperature, "seed": 1, "top_p": 0.9}
    alone = [choose_tokens(rows[i : i + 1], [sampler(**params)], [0])[0].token for i in (0, 2)]
    rows[1, 17] = bad

    chosen = choose_tokens(rows, [sampler(**params) for _ in range(3)], [0, 0, 0])

    assert chosen[1].token is None
    assert [chosen[0].token, chosen[2].token] == alone


def test_a_seeded_draw_depends_on_seed_and_position_alone() -> None:
    row = logits_of(seed=8)
    alone = [choose_tokens(row, [sampler(seed=99)], [at])[0].token for at in range(20)]
    others = [sampler(seed=s, top_k=s + 1) for s in range(5)]

    batched = [
        choose_tokens(torch.cat((logits_of(5, at), row)), [*others, sampler(seed=99)], [3] * 5 + [at])[-1].token
        for at in range(20)
    ]

    assert batched == alone
    assert len(set(alone)) > 5


def test_the_tiniest_temperature_is_greedy() -> None:
    row = logits_of()

    assert choose_tokens(row, [sampler(temperature=1e-300)], [0])[0].token == int(row.argmax())


def test_uniforms_are_uniform_over_seeds_and_over_positions() -> None:
    count = 100_000
    over_positions = uniforms(np.zeros(count, np.uint64), np.arange(count))
    over_seeds = uniforms(np.arange(count).astype(np.uint64), np.zeros(count, np.int64))

    for values in (over_positions, over_seeds):
        assert values.min() >= 0.0
        assert values.max() < 1.0
        counts = np.histogram(values, 100, (0, 1))[0]
        chi_squared = float(((counts - count / 100) ** 2 / (count / 100)).sum())
        assert chi_squared < 150  # 99 degrees of freedom: beyond it once in a thousand
        assert abs(np.corrcoef(values[:-1], values[1:])[0, 1]) < 0.01


def test_uniforms_stay_what_they_were() -> None:
    """A sequence resumed by another version of the server must go on alike."""
    seeds = np.array([0, 1, 2**64 - 1], np.uint64)

    got = uniforms(seeds, np.array([0, 5, 1000]))

    assert got.tolist() == [0.6524484863740322, 0.7743991716672016, 0.033884161635479915]
