"""Sampling on the device gives what sampling on the CPU gives."""

from __future__ import annotations

import pytest
import torch

from semipd.core.request import SamplingParams, StoppingParams
from semipd.engine.cuda.kernels import sampling
from semipd.engine.sampling import SequenceSampler, draw

VOCAB = 700


def drawn(logits: torch.Tensor, params: list[SamplingParams], chance: torch.Tensor) -> list[int]:
    places = len(params)
    device = logits.device

    def column(values: list[float], kind: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.tensor(values, dtype=kind, device=device)

    tokens = torch.full((places,), 99_999, dtype=torch.int32, device=device)
    fed = torch.full((places + 2,), 88_888, dtype=torch.int32, device=device)
    rows = torch.arange(places, dtype=torch.int32, device=device)
    rows[0] = -1
    sampling.sample(
        logits,
        rows,
        column([p.temperature for p in params]),
        column([p.top_k for p in params], torch.int32),
        column([p.top_p for p in params]),
        column([p.min_p for p in params]),
        chance.float().to(device),
        tokens,
        fed,
    )
    answer: list[int] = tokens.tolist()
    assert fed.tolist() == [88_888, *(max(0, t) for t in answer[1:]), 88_888, 88_888]
    return answer


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(temperature=1.0),
        SamplingParams(temperature=0.3, top_k=5),
        SamplingParams(temperature=1.7, top_p=0.8),
        SamplingParams(temperature=0.9, min_p=0.1),
        SamplingParams(temperature=2.0, top_k=40, top_p=0.5, min_p=0.01),
        SamplingParams(temperature=1.0, top_k=1),
        SamplingParams(temperature=1.0, top_p=1e-6),
    ],
)
@pytest.mark.parametrize("kind", [torch.float32, pytest.param(torch.float16, marks=pytest.mark.thorough)])
def test_draws_as_on_the_cpu(device: torch.device, params: SamplingParams, kind: torch.dtype) -> None:
    rows = 24
    generator = torch.Generator().manual_seed(3)
    logits = (torch.randn(rows, VOCAB, generator=generator) * 3).to(kind)
    chance = torch.rand(rows, generator=generator, dtype=torch.float64)
    expected = draw(logits.float(), [params] * rows, chance).tolist()
    found = drawn(logits.to(device), [params] * rows, chance)
    assert sum(a == b for a, b in zip(expected, found, strict=True)) >= rows - 1  # a last bit may fall the other way


def test_the_likeliest_and_rows_that_are_not_finite(device: torch.device) -> None:
    logits = torch.randn(6, VOCAB, generator=torch.Generator().manual_seed(1))
    logits[1, 13] = float("nan")
    logits[2, 14] = float("inf")
    logits[3] = -float("inf")
    logits[4, 100:] = -float("inf")
    logits[5, 30] = logits[5, 40] = 50.0
    greedy = [SamplingParams(temperature=0.0)] * 6
    found = drawn(logits.to(device), greedy, torch.zeros(6))
    assert found == [int(logits[0].argmax()), -1, -1, -1, int(logits[4].argmax()), 30]


def test_tokens_without_a_chance_are_never_drawn(device: torch.device) -> None:
    logits = torch.full((3, VOCAB), -float("inf"))
    logits[:, 5] = logits[:, 600] = 0.0
    params = [
        SamplingParams(temperature=1.0),
        SamplingParams(temperature=1.0, top_k=50),
        SamplingParams(temperature=1.0, top_p=0.9),
    ]
    assert drawn(logits.to(device), params, torch.tensor([0.0, 0.4999, 0.49])) == [5, 5, 5]
    assert drawn(logits.to(device), params, torch.tensor([0.5, 0.51, 0.9999999])) == [600, 600, 600]


def test_penalties(device: torch.device) -> None:
    params = SamplingParams(temperature=1.0, repetition_penalty=1.3, frequency_penalty=0.2, presence_penalty=0.5)
    logits = torch.randn(3, VOCAB, generator=torch.Generator().manual_seed(2))
    prompt, output = (1, 2, 3, 3), (3, 5, 5, 6)
    histories = torch.zeros((2, VOCAB), dtype=torch.int32)
    histories[1, list(set(prompt))] |= sampling.SEEN_IN_PROMPT
    for token in output[:-1]:
        histories[1, token] += 1
    histories = histories.to(device)
    slots = torch.tensor([-1, 1, -1], dtype=torch.int32, device=device)
    sampling.count(histories, slots, torch.tensor([4, output[-1], 4], dtype=torch.int32, device=device))
    out = torch.zeros((3, VOCAB), device=device)

    def same(value: float) -> torch.Tensor:
        return torch.full((3,), value, device=device)

    sampling.penalise(logits.to(device), histories, slots, same(1.3), same(0.2), same(0.5), out)
    expected = logits.clone()
    SequenceSampler(params, StoppingParams(max_tokens=9), prompt, output, VOCAB).adjust(expected[1], 4)
    torch.testing.assert_close(out.cpu(), expected)
