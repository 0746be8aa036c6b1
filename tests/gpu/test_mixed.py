"""Prompts inside steps: the same tokens as in passes of their own."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from semipd.core.request import SamplingParams, StoppingParams
from semipd.engine.engine import Draw, Engine, Failed, PrefillItem
from support.device_rig import Answer
from support.reference import random_tokens
from support.wish import GREEDY, Wish

pytestmark = pytest.mark.gpu

PROMPT_TOKENS = 256
FAMILIES = (
    "llama, head_dim 128",
    "llama, dynamic rope",
    "mistral, sliding window",
    "qwen2, tied, windows above the first layer",
    "qwen3",
)
CUTS = ((10_000,), (7,), (33, 5), (1, 64), (16,))
PENALISED = SamplingParams(temperature=0.0, repetition_penalty=1.2, frequency_penalty=0.1)
LOGPROBS = SamplingParams(temperature=0.0, logprobs=True, top_logprobs=3)
SEEDED = SamplingParams(temperature=0.8, top_p=0.9, top_k=50, seed=11)


class Mixed:
    """Sequences over a rig's memory whose prompts are computed inside the steps of the others."""

    def __init__(self, made):
        self.made = made
        engine = made.engine
        if made.device.type != "cuda":
            engine = Engine(made.model, made.weights, made.pool)
        self.batch = engine.decode_batch(prompt_tokens=PROMPT_TOKENS)
        self.answers: dict[int, Answer] = {}
        self.chunks = {}
        """Of sequences that are not in the batch: the places where their chunks begin, and the end."""
        self.alone = self.together = 0

    def begin(self, wish):
        lease = self.made.lease()
        self.answers[lease] = Answer(wish)
        tokens, at, turn = len(wish.prompt) + len(wish.output), [0], 0
        while at[-1] < tokens:
            at.append(min(tokens, at[-1] + min(PROMPT_TOKENS, wish.chunks[turn % len(wish.chunks)])))
            turn += 1
        self.chunks[lease] = at
        return lease

    def step(self, *, ahead=True):
        batch, made = self.batch, self.made
        for lease in batch.wanting_pages():
            held = len(made._held[lease])
            batch.grow(lease, made.take(lease, (held + 1) * 16)[held:])
        prompts = self._prompts()
        self.together += bool(prompts) and len(batch) > 0
        self.alone += bool(prompts) and not len(batch)
        self._note(batch.step(made.pulse, ahead=ahead, prompts=prompts))

    def settle(self):
        self._note(self.batch.drain(self.made.pulse))

    def leave(self, lease):
        self.batch.remove(lease)
        self.answers[lease].left = True
        return self.answers[lease].rest()

    def run(self, wishes):
        """Every wish to its end; each begins at its own step."""
        waiting, leases, number = dict(enumerate(wishes)), {}, 0
        while waiting or self.chunks or len(self.batch) or self.batch.flying:
            for place in [place for place, wish in waiting.items() if wish.joins_at <= number]:
                leases[place] = self.begin(waiting.pop(place))
            if number % 5 == 2:
                self.batch.prepare()
            self.step(ahead=number % 4 != 3)
            number += 1
        self.settle()
        return [self.answers[leases[place]] for place in range(len(wishes))]

    def _prompts(self):
        """The next chunk of each that has one, as many as fit. A sequence's next chunk needs no answer to the last."""
        items, room = [], PROMPT_TOKENS
        for lease, at in self.chunks.items():
            if len(at) > 1 and at[1] - at[0] <= room:
                items.append(self._item(lease, at[0], at[1]))
                room -= at[1] - at[0]
                del at[0]
        return items

    def _item(self, lease, start, end):
        wish = self.answers[lease].wish
        tokens = [*wish.prompt, *wish.output]
        draw = Draw(wish.sampling, wish.stopping, tuple(wish.prompt), wish.output) if end == len(tokens) else None
        return PrefillItem(lease, tokens[start:end], start, self.made.take(lease, end), draw, len(wish.prompt))

    def _note(self, outcomes):
        for lease, outcome in outcomes:
            if not self.answers[lease].left:
                self._write(lease, outcome)
        for items, found in self.batch.prompt_outcomes():
            for item, outcome in zip(items, found, strict=True):
                assert (outcome is None) == (item.draw is None)
                if item.draw is not None:
                    self._join(item, outcome)
        for lease in self.batch.quiet():
            self.made.release(lease)

    def _join(self, item, outcome):
        del self.chunks[item.lease]
        self._write(item.lease, outcome)
        if self.answers[item.lease].ended:
            self.made.release(item.lease)
            return
        context = item.start + len(item.tokens)
        draw = replace(item.draw, output=(*item.draw.output, outcome.token))
        self.batch.add(item.lease, context, self.made.take(item.lease, context), draw)

    def _write(self, lease, outcome):
        answer = self.answers[lease]
        assert not answer.ended
        answer.steps.append(outcome)
        assert not isinstance(outcome, Failed)
        assert outcome.position == len(answer.wish.output) + len(answer.tokens)
        answer.tokens.append(outcome.token)


def wishes(sampling=(GREEDY,)):
    lengths = (5, 16, 17, 100, 33, 1, 250, 64, 40, 15, 180, 31)
    return [
        Wish(
            random_tokens(length, number),
            sampling[number % len(sampling)],
            StoppingParams(12 + 9 * (number % 3)),
            chunks=CUTS[number % len(CUTS)],
            joins_at=2 * (number // 2),
        )
        for number, length in enumerate(lengths)
    ]


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_tokens_are_those_of_separate_passes(family, rig):
    wanted = wishes()
    expected = [answer.tokens for answer in rig(family).run(wanted)]
    mixed = Mixed(rig(family))

    assert [answer.tokens for answer in mixed.run(wanted)] == expected
    assert mixed.alone > 0
    assert mixed.together > 5
    assert mixed.made.pages_held == 0


def test_penalties_logprobs_and_seeds_are_those_of_separate_passes(rig):
    wanted = wishes((PENALISED, LOGPROBS, SEEDED))
    expected = rig().run(wanted)

    found = Mixed(rig()).run(wanted)

    for one, other in zip(found, expected, strict=True):
        assert one.tokens == other.tokens
        assert [bool(step.logprob) for step in one.steps] == [bool(step.logprob) for step in other.steps]
        for a, b in zip(one.steps, other.steps, strict=True):
            if a.logprob:
                assert a.logprob.logprob == pytest.approx(b.logprob.logprob, abs=1e-3)


def test_in_bfloat16_every_greedy_token_is_nearly_the_likeliest(rig):
    """A token that comes of wrong KV lies whole standard deviations of its row below the highest logit."""
    made = rig("llama, head_dim 128", torch.bfloat16)
    wanted = wishes()

    answers = Mixed(made).run(wanted)

    rows = made.forced([[*wish.prompt, *answer.tokens[:-1]] for wish, answer in zip(wanted, answers, strict=True)])
    for wish, answer, logits in zip(wanted, answers, rows, strict=True):
        assert len(answer.tokens) == wish.stopping.max_tokens
        own = logits[len(wish.prompt) - 1 :].float()
        taken = own.gather(1, torch.tensor(answer.tokens)[:, None])[:, 0]
        assert float(((own.max(-1).values - taken) / own.std(-1)).max()) < 0.25
    assert made.pages_held == 0


def test_one_that_leaves_while_it_is_computed_is_taken_up_again_inside_a_step(rig):
    wish = Wish(random_tokens(40), stopping=StoppingParams(30))
    [expected] = [answer.tokens for answer in rig().run([wish])]
    mixed = Mixed(rig())
    others = [mixed.begin(Wish(random_tokens(20, n), stopping=StoppingParams(60))) for n in range(1, 4)]
    lease = mixed.begin(wish)
    for _ in range(9):
        mixed.step()

    again = mixed.begin(mixed.leave(lease))
    while not mixed.answers[again].ended:
        mixed.step()

    assert [*mixed.answers[lease].tokens, *mixed.answers[again].tokens] == expected
    for other in others:
        mixed.leave(other)
    mixed.settle()
    assert mixed.made.pages_held == 0


def test_batches_that_are_warm_touch_no_sequence(rig, device):
    """What `warm` launches reads page 0 and writes nowhere."""
    if device.type != "cuda":
        pytest.skip("a CPU's batch has nothing to warm")
    made = rig()
    mixed = Mixed(made)
    before = made.pool.clone()

    mixed.batch.warm()

    made.synchronise()
    assert torch.equal(made.pool.view(torch.int32), before.view(torch.int32))
