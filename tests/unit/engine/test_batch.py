"""The continuous batch: joining, growing, leaving, ends and failures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from semipd.core.request import EndReason, SamplingParams, StoppingParams
from semipd.engine.engine import CpuEngine, PrefillItem, SampledToken, SamplingInput, SequenceFailure
from semipd.engine.pulse import SilentPulse
from support.engine_rig import EngineRig, MakeRig
from support.outcomes import end_of, logprob_of, sampled
from support.wish import Wish

GREEDY = SamplingParams(temperature=0.0)
PROMPT = (5, 9, 120, 33, 7)


NO_PULSE = SilentPulse()


def adopt(
    rig: EngineRig,
    lease: int,
    prompt: Sequence[int] = PROMPT,
    stopping: StoppingParams | None = None,
    sampling: SamplingParams = GREEDY,
    tokens_of_room: int | None = None,
) -> SampledToken:
    """Prefills a sequence and puts it into the batch, with pages for its prompt or for so many tokens."""
    stopping = stopping or StoppingParams(max_tokens=100)
    table = rig.take(lease, tokens_of_room or len(prompt))
    sampling_input = SamplingInput(sampling, stopping, tuple(prompt), ())
    (first,) = rig.engine.prefill([PrefillItem(lease, prompt, 0, table, sampling_input)], rig.pulse)
    rig.batch.add(lease, len(prompt), table, SamplingInput(sampling, stopping, tuple(prompt), (sampled(first).token,)))
    return sampled(first)


def test_an_empty_prefill_and_an_empty_step_do_nothing(rig: MakeRig) -> None:
    made = rig()

    assert made.engine.prefill([], made.pulse) == []
    assert made.batch.step(made.pulse) == []
    assert made.pulses == 0


def test_pulses_once_a_layer(rig: MakeRig) -> None:
    made = rig()
    adopt(made, 1)
    assert made.pulses == made.model.layers

    made.batch.step(made.pulse)

    assert made.pulses == 2 * made.model.layers


def test_a_chunk_that_does_not_end_the_prompt_samples_nothing(rig: MakeRig) -> None:
    made = rig()

    assert made.engine.prefill([PrefillItem(1, PROMPT, 0, made.take(1, 5), None)], made.pulse) == [None]


def test_a_sequence_without_a_page_for_its_next_token_waits_and_the_others_go_on(
    rig: MakeRig, wish: type[Wish]
) -> None:
    expected = [a.tokens for a in rig().run([wish(tuple(range(1, 17))), wish(PROMPT)])]
    made = rig()
    got = {1: [adopt(made, 1, tuple(range(1, 17))).token], 2: [adopt(made, 2).token]}
    assert made.batch.wanting_pages() == [1]

    for lease, outcome in made.batch.step(NO_PULSE):
        got[lease].append(sampled(outcome).token)
    assert [len(got[1]), len(got[2])] == [1, 2]
    made.batch.grow(1, made.take(1, 17)[1:])
    assert made.batch.wanting_pages() == []
    for _ in range(3):
        for lease, outcome in made.batch.step(NO_PULSE):
            got[lease].append(sampled(outcome).token)

    assert got == {1: expected[0][:4], 2: expected[1][:5]}


def test_a_held_sequence_is_in_no_step_keeps_its_place_and_goes_on_from_there(rig: MakeRig, wish: type[Wish]) -> None:
    drawn = SamplingParams(temperature=0.8, seed=3, frequency_penalty=0.5, repetition_penalty=1.2)
    expected = rig().run([wish(PROMPT, sampling=drawn), wish((1, 2, 3))])
    made = rig()
    got = {1: [adopt(made, 1, sampling=drawn, tokens_of_room=64).token]}
    got[2] = [adopt(made, 2, (1, 2, 3), tokens_of_room=64).token]

    for held in (set(), {1}, {1, 99}, {1}, {1, 2}, {2}, set()):
        made.batch.hold(held)
        answers = made.batch.step(NO_PULSE)
        assert {lease for lease, _ in answers} == {1, 2} - held
        for lease, outcome in answers:
            got[lease].append(sampled(outcome).token)

    assert got == {1: expected[0].tokens[:4], 2: expected[1].tokens[:6]}


def test_a_held_sequence_wants_no_page_and_counts_no_tokens(rig: MakeRig) -> None:
    made = rig()
    adopt(made, 1, tuple(range(1, 17)))
    adopt(made, 2)

    made.batch.hold([1])
    assert made.batch.wanting_pages() == []
    assert made.batch.context_tokens() == 5
    made.batch.remove(2)
    assert made.batch.step(NO_PULSE) == []
    made.batch.hold([])
    assert made.batch.wanting_pages() == [1]
    assert made.batch.context_tokens() == 16


def test_counts_the_tokens_in_the_pool(rig: MakeRig) -> None:
    made = rig()
    adopt(made, 1)
    adopt(made, 2, (1, 2, 3))

    assert made.batch.context_tokens() == 8
    made.batch.step(NO_PULSE)
    assert made.batch.context_tokens() == 10
    made.batch.remove(1)
    assert made.batch.context_tokens() == 4


def test_a_sequence_can_leave_and_come_back(rig: MakeRig, wish: type[Wish]) -> None:
    expected = rig().run([wish(PROMPT)])[0].tokens
    made = rig()
    tokens = [adopt(made, 7, tokens_of_room=32).token]
    adopt(made, 8)
    for _ in range(4):
        tokens += [sampled(s).token for lease, s in made.batch.step(NO_PULSE) if lease == 7]
    made.batch.remove(7)
    assert made.batch.leases() == [8]
    made.batch.step(NO_PULSE)

    sampling_input = SamplingInput(GREEDY, StoppingParams(100), (), tuple(tokens))
    made.batch.add(7, len(PROMPT) + 4, made.take(7, 32), sampling_input)
    for _ in range(4):
        tokens += [sampled(s).token for lease, s in made.batch.step(NO_PULSE) if lease == 7]

    assert tokens == expected[:9]


def test_more_sequences_than_the_first_columns_hold(rig: MakeRig, wish: type[Wish]) -> None:
    prompts = [(token, 2 * token, 3) for token in range(1, 40)]
    wishes = [wish(prompt, stopping=StoppingParams(6)) for prompt in prompts]

    together = rig(pages=100).run(wishes)

    assert [a.tokens for a in together] == [rig().run([each])[0].tokens for each in wishes]


def test_refuses_what_cannot_be(rig: MakeRig) -> None:
    made = rig()
    adopt(made, 1)
    sampling_input = SamplingInput(GREEDY, StoppingParams(9), (), (4,))

    with pytest.raises(ValueError, match="is in the batch"):
        made.batch.add(1, 5, made.take(1, 5), sampling_input)
    with pytest.raises(ValueError, match="17 tokens, 1 pages"):
        made.batch.add(2, 17, made.take(2, 16), sampling_input)
    with pytest.raises(ValueError, match="0 output tokens"):
        made.batch.add(2, 5, made.take(2, 16), SamplingInput(GREEDY, StoppingParams(9), (), ()))
    with pytest.raises(KeyError):
        made.batch.remove(2)


def test_refuses_a_pool_and_weights_of_another_shape(rig: MakeRig) -> None:
    made = rig()

    with pytest.raises(ValueError, match="the pool's shape"):
        CpuEngine(made.model, made.weights, made.pool[:1])
    with pytest.raises(ValueError, match=r"layers\.1\.qkv"):
        CpuEngine(made.model, {k: v for k, v in made.weights.items() if k != "layers.1.qkv"}, made.pool)


# --- ends -----------------------------------------------------------------------------------------------------------


def test_ends_after_max_tokens(rig: MakeRig, wish: type[Wish]) -> None:
    for count in (1, 2, 5):
        answer = rig().run([wish(PROMPT, stopping=StoppingParams(count))])[0]

        assert len(answer.tokens) == count
        assert [sampled(s).end for s in answer.steps[:-1]] == [None] * (count - 1)
        assert end_of(answer.steps[-1]).reason is EndReason.LENGTH


def test_ends_at_a_stop_token_even_the_last_one_allowed(rig: MakeRig, wish: type[Wish]) -> None:
    tokens = rig().run([wish(PROMPT)])[0].tokens
    place = next(i for i, token in enumerate(tokens) if i > 2 and token not in tokens[:i])
    stopping = StoppingParams(place + 1, stop_token_ids=frozenset({tokens[place], 1000}))

    answer = rig().run([wish(PROMPT, stopping=stopping)])[0]

    assert answer.tokens == tokens[: place + 1]
    assert end_of(answer.steps[-1]).reason is EndReason.STOP_TOKEN
    assert end_of(answer.steps[-1]).stop_token_id == tokens[place]


def test_no_stop_token_before_min_tokens(rig: MakeRig, wish: type[Wish]) -> None:
    tokens = rig().run([wish(PROMPT)])[0].tokens
    stopping = StoppingParams(30, min_tokens=6, stop_token_ids=frozenset(tokens[:6]))

    answer = rig().run([wish(PROMPT, stopping=stopping)])[0]

    assert len(answer.tokens) >= 6
    assert not set(answer.tokens[:6]) & stopping.stop_token_ids


# --- isolation ------------------------------------------------------------------------------------------------------


def test_a_sequence_that_is_not_finite_fails_alone_and_taints_no_page(rig: MakeRig, wish: type[Wish]) -> None:
    """Its pages, full of NaN, serve the next sequence as any others do."""
    expected = [a.tokens for a in rig().run([wish(PROMPT), wish((8, 8, 1))])]
    made = rig(pages=4)
    adopt(made, 1)
    adopt(made, 2, (60, 61, 62))
    got = []
    page = int(made.take(2, 1)[0])
    made.pool[:, page, 0, :3] = math.nan

    outcomes = dict(made.batch.step(NO_PULSE))
    assert isinstance(outcomes[2], SequenceFailure)
    assert "finite" in outcomes[2].error
    got.append(sampled(outcomes[1]).token)
    assert made.batch.leases() == [1]
    made.pool[:, page] = math.nan
    made.release(2)

    made.assign(3, page)
    third = [adopt(made, 3, (8, 8, 1)).token]
    for _ in range(4):
        outcomes = dict(made.batch.step(NO_PULSE))
        got.append(sampled(outcomes[1]).token)
        third.append(sampled(outcomes[3]).token)
    assert got == expected[0][1:6]
    assert third == expected[1][:5]


def test_a_prompt_that_is_not_finite_fails_alone(rig: MakeRig, wish: type[Wish]) -> None:
    expected = rig().run([wish(PROMPT)])[0].tokens
    made = rig()
    made.weights["embed"][77] = math.nan
    sampling_input = SamplingInput(GREEDY, StoppingParams(9), (), ())
    items = [
        PrefillItem(1, (3, 77, 4), 0, made.take(1, 3), sampling_input),
        PrefillItem(2, PROMPT, 0, made.take(2, 5), sampling_input),
    ]

    bad, good = made.engine.prefill(items, made.pulse)

    assert isinstance(bad, SequenceFailure)
    assert isinstance(good, SampledToken)
    assert good.token == expected[0]


@pytest.mark.parametrize("sampling", [{}, {"top_p": 0.9, "top_k": 40}, {"repetition_penalty": 1.2, "temperature": 1.5}])
def test_a_seeded_request_gives_the_same_tokens_alone_in_a_batch_and_resumed(
    rig: MakeRig, wish: type[Wish], sampling: dict[str, Any]
) -> None:
    params = SamplingParams(seed=2**63 + 11, **sampling)
    alone = rig().run([wish(PROMPT, params)])[0].tokens
    others = [wish((i, i + 1, 3), SamplingParams(seed=i, top_k=i), StoppingParams(10 * i)) for i in range(1, 6)]

    batched = rig().run([*others[:3], wish(PROMPT, params, joins_at=4, chunks=(2,)), *others[3:]])[3].tokens
    resumed = rig().run([wish(PROMPT, params, output=tuple(alone[:13]))])[0].tokens

    assert batched == alone
    assert resumed == alone[13:]
    assert len(set(alone)) > 10


def test_logprobs_come_with_the_tokens(rig: MakeRig, wish: type[Wish]) -> None:
    params = SamplingParams(temperature=0.0, logprobs=True, top_logprobs=2)

    answer = rig().run([wish(PROMPT, params, StoppingParams(4))])[0]

    for step in answer.steps:
        logprob = logprob_of(step)
        assert logprob.token == sampled(step).token == logprob.top[0][0]
        assert logprob.logprob == logprob.top[0][1] > logprob.top[1][1]


def test_tables_may_be_longer_than_the_context(rig: MakeRig, wish: type[Wish]) -> None:
    expected = rig().run([wish(PROMPT)])[0].tokens
    made = rig()
    table = np.concatenate((made.take(1, 5), made.take(2, 64)))
    sampling_input = SamplingInput(GREEDY, StoppingParams(100), (), ())
    (first,) = made.engine.prefill([PrefillItem(1, PROMPT, 0, table, sampling_input)], made.pulse)
    made.batch.add(1, 5, table, SamplingInput(GREEDY, StoppingParams(100), (), (sampled(first).token,)))

    tokens = [sampled(first).token] + [sampled(made.batch.step(NO_PULSE)[0][1]).token for _ in range(20)]

    assert tokens == expected[:21]
