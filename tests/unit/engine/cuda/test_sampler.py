"""Rules of many kinds side by side give on the device what they give on the CPU, step after step."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from semipd.core.request import SamplingParams, StoppingParams
from semipd.engine.cuda.launch_args import LaunchArgs
from semipd.engine.cuda.sampler import (
    SAMPLING_COLUMNS,
    DeviceSampler,
    PendingTokens,
    SamplingRules,
    columns,
    sample_points,
)
from semipd.engine.sampling import CERTAIN_TEMPERATURE, SequenceSampler, TokenChoice, choose_tokens
from semipd.engine.sampling_result import SamplingInput

VOCAB = 300
PLAIN = StoppingParams(max_tokens=50)
BAN = StoppingParams(max_tokens=50, min_tokens=2, stop_token_ids=frozenset({7, VOCAB + 5}))
DRAWS = [
    SamplingInput(SamplingParams(temperature=0.0), PLAIN, (), (1,)),
    SamplingInput(SamplingParams(temperature=0.9, seed=5, logprobs=True, top_logprobs=3), PLAIN, (), ()),
    SamplingInput(SamplingParams(temperature=0.0, logit_bias={11: 50.0}), PLAIN, (), ()),
    SamplingInput(SamplingParams(temperature=0.0), BAN, (), ()),
    SamplingInput(SamplingParams(temperature=0.7, seed=2**63, repetition_penalty=1.5), PLAIN, (3, 3, 4), (9, 9)),
    SamplingInput(SamplingParams(temperature=0.0, frequency_penalty=30.0, logprobs=True), PLAIN, (), ()),
    SamplingInput(SamplingParams(temperature=0.0, presence_penalty=9.0, logit_bias={7: 99.0}), BAN, (), ()),
]


class Device:
    """A sampler, told what a pass over these draws is told."""

    def __init__(self, device: torch.device) -> None:
        self.sampler = DeviceSampler(VOCAB, len(DRAWS), device)
        self.rules = [SamplingRules(wanted, VOCAB, device, self.sampler.remember(wanted)) for wanted in DRAWS]
        fields = {
            "rows": ((len(DRAWS),), np.int32),
            **{name: ((len(DRAWS),), kind) for name, kind in SAMPLING_COLUMNS.items()},
        }
        self.command = LaunchArgs(fields, device)

    def draw(self, logits: torch.Tensor, positions: list[int]) -> PendingTokens:
        say = self.command.next()
        say["rows"][:] = np.arange(len(DRAWS))
        for place, (wanted, rules) in enumerate(zip(DRAWS, self.rules, strict=True)):
            for name, value in columns(wanted, rules.history).items():
                say[name][place] = value
        seeds = np.array([wanted.params.seed for wanted in DRAWS], np.uint64)
        say["point"][:] = sample_points(say["temperature"], seeds, np.array(positions))
        self.command.send()
        special = [
            (place, position, rules)
            for place, (position, rules) in enumerate(zip(positions, self.rules, strict=True))
            if not rules.plain
        ]
        given = self.command.device
        drawn = self.sampler.sample(logits, given["rows"], given, special, self.sampler.fed)
        if logits.is_cuda:
            torch.cuda.synchronize()
        return drawn


def same(choice: TokenChoice, drawn: PendingTokens, place: int, rules: SamplingRules) -> None:
    assert drawn.tokens[place] == choice.token
    if choice.logprob is None:
        assert place not in drawn.logprob_places
        return
    found = drawn.logprobs([rules] * len(DRAWS))[place]
    assert found.token == choice.logprob.token
    assert found.logprob == pytest.approx(choice.logprob.logprob, abs=1e-5)
    assert [token for token, _ in found.top] == [token for token, _ in choice.logprob.top]


def test_as_on_the_cpu_for_several_steps(device: torch.device) -> None:
    """Histories count what was drawn, and a ban ends with min_tokens."""
    made = Device(device)
    samplers = [SequenceSampler(d.params, d.stopping, d.prompt, d.output, VOCAB) for d in DRAWS]
    logits = torch.randn(len(DRAWS), VOCAB, generator=torch.Generator().manual_seed(4)) * 3
    logits[3, 7] = 40.0
    banned = []
    for step in range(4):
        positions = [len(wanted.output) + step for wanted in DRAWS]
        expected = choose_tokens(logits.clone(), samplers, positions)
        drawn = made.draw(logits.to(device), positions)
        for place, choice in enumerate(expected):
            same(choice, drawn, place, made.rules[place])
            assert choice.token is not None
            samplers[place].took(choice.token)
        assert made.sampler.fed.tolist() == drawn.tokens.tolist(), "each is fed what was drawn"
        banned.append(int(drawn.tokens[3]) == 7)
    assert banned == [False, False, True, True]


def test_a_history_slot_is_used_again_and_begins_anew(device: torch.device) -> None:
    sampler = DeviceSampler(VOCAB, 4, device)
    penalised = SamplingInput(SamplingParams(temperature=0.0, repetition_penalty=2.0), PLAIN, (1,), (2,))
    slots = [sampler.remember(penalised) for _ in range(40)]
    assert len(set(slots)) == 40, "as many as are asked for"
    sampler.forget(slots[7])
    assert sampler.remember(penalised) == slots[7]
    assert sampler.remember(DRAWS[0]) == -1, "without a penalty it needs none"
    sampler.forget(-1)


def test_chances_are_below_one_also_as_float32_and_nobody_draws_without_a_temperature() -> None:
    seeds, positions = np.arange(200_000, dtype=np.uint64), np.arange(200_000)
    drawn = sample_points(np.ones(len(seeds), np.float32), seeds, positions)
    assert drawn.dtype == np.float32
    assert 0 <= drawn.min() < drawn.max() < 1
    assert not sample_points(np.zeros(3, np.float32), seeds[:3], positions[:3]).any()


def test_a_temperature_at_which_nothing_else_could_be_drawn_is_none() -> None:
    almost = SamplingInput(SamplingParams(temperature=CERTAIN_TEMPERATURE / 2), PLAIN, (), ())
    assert columns(almost, -1)["temperature"] == 0.0


def test_rules_are_plain_where_the_columns_say_it_all(device: torch.device) -> None:
    made = Device(device)
    assert [rules.plain for rules in made.rules] == [True, False, False, False, False, False, False]
