"""Prompts inside steps: what comes of them, and of the rows beside them, is what comes of separate passes."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from semipd.core.request import SamplingParams, StoppingParams
from semipd.engine.engine import PrefillItem, SampledToken, SamplingInput, SequenceFailure, TokenOutcome
from support.engine_rig import EngineAnswer, EngineRig, MakeRig
from support.outcomes import sampled
from support.wish import Wish

GREEDY = SamplingParams(temperature=0.0)
PROMPT = (5, 9, 120, 33, 7)
CHUNKS = ((7,), (16, 3), (1, 30), (10_000,))
PARAMS = (
    GREEDY,
    SamplingParams(seed=3, temperature=0.9, top_p=0.9),
    SamplingParams(temperature=0.0, repetition_penalty=1.3, frequency_penalty=0.2),
    SamplingParams(temperature=0.0, logprobs=True, top_logprobs=2),
    SamplingParams(seed=9, temperature=1.2, logit_bias={3: 2.0}),
)


def run_mixed(made: EngineRig, wishes: Sequence[Wish]) -> list[EngineAnswer]:
    """Does what `Rig.run` does, but every chunk is part of a step."""
    answers = [EngineAnswer() for _ in wishes]
    waiting = dict(enumerate(wishes))
    done: dict[int, int] = {}
    turn: dict[int, int] = {}
    step = 0
    while waiting or done or len(made.batch):
        for lease in [lease for lease, wish in waiting.items() if wish.joins_at <= step]:
            del waiting[lease]
            done[lease] = turn[lease] = 0
        items = [made._item(lease, wishes[lease], at, turn[lease]) for lease, at in done.items()]
        for lease in made.batch.wanting_pages():
            held = len(made._held[lease])
            made.batch.grow(lease, made.take(lease, (held + 1) * 16)[held:])
        for lease, outcome in made.batch.step(made.pulse, prompts=items):
            made._note(lease, outcome, answers[lease])
        known = made.batch.prompt_outcomes()
        assert [given for given, _ in known] == ([items] if items else [])
        for item, first in zip(items, known[0][1] if items else (), strict=True):
            done[item.lease] += len(item.tokens)
            turn[item.lease] += 1
            assert (first is None) == (item.sampling is None)
            if item.sampling is not None:
                context = done.pop(item.lease)
                assert first is not None
                made._note(item.lease, first, answers[item.lease])
                if isinstance(first, SampledToken) and first.end is None:
                    sampling_input = SamplingInput(
                        item.sampling.params, item.sampling.stopping, item.sampling.prompt, (first.token,)
                    )
                    made.batch.add(item.lease, context, made.take(item.lease, context), sampling_input)
        step += 1
    return answers


def said(step: TokenOutcome) -> tuple[object, ...]:
    token = sampled(step)
    logprob = token.logprob and (token.logprob.token, pytest.approx(token.logprob.logprob, abs=1e-4))
    return token.token, token.position, token.end, logprob


def test_equal_to_separate_passes(family: str, rig: MakeRig, wish: type[Wish]) -> None:
    lengths = (5, 16, 33, 40, 17, 1, 90, 12)
    wishes = [
        wish(
            [(7 * lease + 3 * at + at * at) % 150 for at in range(length)],
            PARAMS[lease % len(PARAMS)],
            StoppingParams(10 + 7 * (lease % 3), stop_token_ids=frozenset(range(0, 150, 17)), min_tokens=3),
            chunks=CHUNKS[lease % len(CHUNKS)],
            joins_at=3 * (lease // 2),
        )
        for lease, length in enumerate(lengths)
    ]

    expected, found = rig(family).run(wishes), run_mixed(rig(family), wishes)

    for number, (one, other) in enumerate(zip(found, expected, strict=True)):
        assert [said(s) for s in one.steps] == [said(s) for s in other.steps], number


def test_a_prompt_that_is_not_finite_fails_alone(rig: MakeRig, wish: type[Wish]) -> None:
    expected = rig().run([wish(PROMPT)])[0].tokens
    made = rig()
    sampling_input = SamplingInput(GREEDY, StoppingParams(9), (), ())
    made.batch.step(made.pulse, prompts=[PrefillItem(1, PROMPT, 0, made.take(1, 5), sampling_input)])
    [(_, [first])] = made.batch.prompt_outcomes()
    made.batch.add(1, 5, made.take(1, 32), SamplingInput(GREEDY, StoppingParams(9), (), (sampled(first).token,)))
    # The embedding of a token that only the bad prompt has.
    made.weights["embed"][77] = float("nan")

    answers = made.batch.step(made.pulse, prompts=[PrefillItem(2, (3, 77, 4), 0, made.take(2, 3), sampling_input)])

    [(_, [bad])] = made.batch.prompt_outcomes()
    assert isinstance(bad, SequenceFailure)
    assert [sampled(first).token, *(sampled(s).token for _, s in answers)] == expected[:2]


def test_pulses_once_a_layer_and_prompts_are_told_of_once(rig: MakeRig) -> None:
    made = rig()

    assert made.batch.step(made.pulse, prompts=[PrefillItem(1, PROMPT, 0, made.take(1, 5))]) == []

    assert made.pulses == made.model.layers
    assert [outcomes for _, outcomes in made.batch.prompt_outcomes()] == [[None]]
    assert made.batch.prompt_outcomes() == []
    assert made.batch.flying == 0


def test_a_lease_of_the_batch_is_no_prompt(rig: MakeRig) -> None:
    made = rig()
    table = made.take(1, 32)
    made.engine.prefill([PrefillItem(1, PROMPT, 0, table)], made.pulse)
    made.batch.add(1, 5, table, SamplingInput(GREEDY, StoppingParams(9), (), (4,)))
    pulses = made.pulses

    with pytest.raises(ValueError, match="lease 1 is in the batch"):
        made.batch.step(made.pulse, prompts=[PrefillItem(1, PROMPT, 5, table)])

    assert made.pulses == pulses
    assert made.batch.context_tokens() == 5
