"""Prompts inside steps, as CUDA graphs and launched kernel by kernel: the same tokens as in passes of their own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch

from semipd.core.request import SamplingParams, StoppingParams
from semipd.engine.engine import CpuEngine, PrefillItem, SamplingInput, TokenOutcome
from support.device_rig import CAPTURE_S, Answer, Rig
from support.outcomes import sampled
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

    def __init__(self, made: Rig, *, captured: bool = False) -> None:
        self.made = made
        engine = made.engine
        if made.device.type != "cuda":
            engine = CpuEngine(made.model, made.weights, made.pool)
        self.batch = engine.decode_batch(prompt_tokens=PROMPT_TOKENS)
        self.replayed: list[int] = []
        """Buckets of the steps with prompts that ran as graphs."""
        if captured and made.device.type == "cuda":
            self._capture()
        self.answers: dict[int, Answer] = {}
        self.chunks: dict[int, list[int]] = {}
        """Sequences that are not in the batch: the places where their chunks begin, and the end."""
        self.alone = self.together = 0

    def _capture(self) -> None:
        capture, graphs = self.batch.capture, self.batch.mixed.graphs
        capture.run(CAPTURE_S)
        assert capture.captured == capture.total
        run = graphs.run

        def noted(bucket: int) -> None:
            assert graphs.is_captured(bucket)
            self.replayed.append(bucket)
            run(bucket)

        graphs.run = noted

    def begin(self, wish: Wish) -> int:
        lease = self.made.lease()
        self.answers[lease] = Answer(wish)
        tokens, at, turn = len(wish.prompt) + len(wish.output), [0], 0
        while at[-1] < tokens:
            at.append(min(tokens, at[-1] + min(PROMPT_TOKENS, wish.chunks[turn % len(wish.chunks)])))
            turn += 1
        self.chunks[lease] = at
        return lease

    def step(self, *, ahead: bool = True) -> None:
        batch, made = self.batch, self.made
        for lease in batch.wanting_pages():
            held = len(made._held[lease])
            batch.grow(lease, made.take(lease, (held + 1) * 16)[held:])
        prompts = self._prompts()
        self.together += bool(prompts) and len(batch) > 0
        self.alone += bool(prompts) and not len(batch)
        self._note(batch.step(made.pulse, ahead=ahead, prompts=prompts))

    def settle(self) -> None:
        self._note(self.batch.drain(self.made.pulse))

    def leave(self, lease: int) -> Wish:
        self.batch.remove(lease)
        self.answers[lease].left = True
        return self.answers[lease].rest()

    def run(self, wishes: Sequence[Wish]) -> list[Answer]:
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

    def _prompts(self) -> list[PrefillItem]:
        """The next chunk of each that has one, as many as fit. A sequence's next chunk needs no answer to the last."""
        items, room = [], PROMPT_TOKENS
        for lease, at in self.chunks.items():
            if len(at) > 1 and at[1] - at[0] <= room:
                items.append(self._item(lease, at[0], at[1]))
                room -= at[1] - at[0]
                del at[0]
        return items

    def _item(self, lease: int, start: int, end: int) -> PrefillItem:
        wish = self.answers[lease].wish
        tokens = [*wish.prompt, *wish.output]
        sampling_input = (
            SamplingInput(wish.sampling, wish.stopping, tuple(wish.prompt), wish.output) if end == len(tokens) else None
        )
        return PrefillItem(
            lease, tokens[start:end], start, self.made.take(lease, end), sampling_input, len(wish.prompt)
        )

    def _note(self, outcomes: Sequence[tuple[int, TokenOutcome]]) -> None:
        for lease, outcome in outcomes:
            if not self.answers[lease].left:
                self._write(lease, outcome)
        for items, found in self.batch.prompt_outcomes():
            for item, outcome in zip(items, found, strict=True):
                assert (outcome is None) == (item.sampling is None)
                if item.sampling is not None:
                    self._join(item, outcome)
        for lease in self.batch.quiet():
            self.made.release(lease)

    def _join(self, item: PrefillItem, outcome: TokenOutcome | None) -> None:
        del self.chunks[item.lease]
        self._write(item.lease, outcome)
        if self.answers[item.lease].ended:
            self.made.release(item.lease)
            return
        context = item.start + len(item.tokens)
        assert item.sampling is not None
        sampling_input = replace(item.sampling, output=(*item.sampling.output, sampled(outcome).token))
        self.batch.add(item.lease, context, self.made.take(item.lease, context), sampling_input)

    def _write(self, lease: int, outcome: TokenOutcome | None) -> None:
        answer = self.answers[lease]
        assert not answer.ended
        token = sampled(outcome)
        answer.steps.append(token)
        assert token.position == len(answer.wish.output) + len(answer.tokens)
        answer.tokens.append(token.token)


def wishes(sampling: Sequence[SamplingParams] = (GREEDY,)) -> list[Wish]:
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


CAPTURED = pytest.mark.parametrize("captured", [False, True], ids=["launched", "captured"])


@CAPTURED
@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_tokens_are_those_of_separate_passes(family: str, captured: bool, rig: Callable[..., Rig]) -> None:
    wanted = wishes()
    expected = [answer.tokens for answer in rig(family).run(wanted)]
    mixed = Mixed(rig(family), captured=captured)

    assert [answer.tokens for answer in mixed.run(wanted)] == expected
    assert mixed.alone > 0
    assert mixed.together > 5
    assert mixed.made.pages_held == 0
    if captured and mixed.made.device.type == "cuda":
        passes = mixed.alone + mixed.together
        if family == "llama, dynamic rope":  # long prompts are rotated as a whole, and launched
            assert 0 < len(mixed.replayed) < passes
        else:
            assert len(mixed.replayed) == passes
            assert len(set(mixed.replayed)) > 1  # how many of them are worth their padding is the device's matter


@CAPTURED
def test_penalties_logprobs_and_seeds_are_those_of_separate_passes(captured: bool, rig: Callable[..., Rig]) -> None:
    wanted = wishes((PENALISED, LOGPROBS, SEEDED))
    expected = rig().run(wanted)

    found = Mixed(rig(), captured=captured).run(wanted)

    for one, other in zip(found, expected, strict=True):
        assert one.tokens == other.tokens
        for a, b in zip(map(sampled, one.steps), map(sampled, other.steps), strict=True):
            assert bool(a.logprob) == bool(b.logprob)
            if a.logprob and b.logprob:
                assert a.logprob.logprob == pytest.approx(b.logprob.logprob, abs=1e-3)


def furthest_below(made: Rig, wanted: Sequence[Wish], answers: Sequence[Answer]) -> float:
    """Returns how far a token's logit lies below the highest of its row, at most, in standard deviations of the row. Of
    a token that comes of wrong KV it is whole ones."""
    rows = made.forced([[*wish.prompt, *answer.tokens[:-1]] for wish, answer in zip(wanted, answers, strict=True)])
    found = []
    for wish, answer, logits in zip(wanted, answers, rows, strict=True):
        assert len(answer.tokens) == wish.stopping.max_tokens
        own = logits[len(wish.prompt) - 1 :].float()
        taken = own.gather(1, torch.tensor(answer.tokens)[:, None])[:, 0]
        found.append(float(((own.max(-1).values - taken) / own.std(-1)).max()))
    return max(found)


@CAPTURED
def test_in_bfloat16_every_greedy_token_is_nearly_the_likeliest(captured: bool, rig: Callable[..., Rig]) -> None:
    made = rig("llama, head_dim 128", torch.bfloat16)
    wanted = wishes()

    answers = Mixed(made, captured=captured).run(wanted)

    assert furthest_below(made, wanted, answers) < 0.25
    assert made.pages_held == 0


def test_captured_steps_and_those_with_a_long_context_follow_one_another(rig: Callable[..., Rig]) -> None:
    """A chunk behind much of its prompt is launched, with FlashInfer's attention where there is its kernel."""
    options = {"changes": {"max_position_embeddings": 4096}, "max_context": 4096, "pages": 500}
    made = rig("llama, head_dim 128", torch.bfloat16, **options)
    lengths = (1900, 20, 40, 5, 60, 33, 17)
    wanted = [
        Wish(random_tokens(length, number), stopping=StoppingParams(25), chunks=(200 if number == 0 else 16,))
        for number, length in enumerate(lengths)
    ]
    mixed = Mixed(made, captured=True)

    answers = mixed.run(wanted)

    assert furthest_below(made, wanted, answers) < 0.25
    assert made.pages_held == 0
    if made.device.type == "cuda":
        assert 3 < len(mixed.replayed) < mixed.alone + mixed.together - 3


def test_one_that_leaves_while_it_is_computed_is_taken_up_again_inside_a_step(rig: Callable[..., Rig]) -> None:
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


def test_neither_warming_nor_capturing_touches_a_sequence(rig: Callable[..., Rig], device: torch.device) -> None:
    """Their launches read page 0 and write nowhere."""
    if device.type != "cuda":
        pytest.skip("a CPU's batch has nothing to warm")
    made = rig()
    mixed = Mixed(made)
    before = made.pool.clone()

    mixed.batch.warm()
    mixed.batch.capture.run(CAPTURE_S)

    made.synchronise()
    assert mixed.batch.mixed.graphs.captured == mixed.batch.mixed.graphs.total > 3
    assert torch.equal(made.pool.view(torch.int32), before.view(torch.int32))


def test_a_captured_step_writes_to_the_places_of_its_tokens_and_nowhere_else(
    rig: Callable[..., Rig], device: torch.device
) -> None:
    if device.type != "cuda":
        pytest.skip("a CPU captures nothing")
    made = rig()
    mixed = Mixed(made, captured=True)
    leases = [mixed.begin(Wish(random_tokens(n, n), stopping=StoppingParams(30))) for n in (40, 21)]
    mixed.step(ahead=False)  # from here on they are rows
    leases.append(mixed.begin(Wish(random_tokens(10), stopping=StoppingParams(30))))
    mixed.step(ahead=False)

    made.synchronise()
    graphs = mixed.batch.mixed.graphs
    assert mixed.replayed == [graphs.bucket(40 + 21), graphs.bucket(2 + 10)]
    expected = torch.zeros(made.pool.shape[1], 16, dtype=torch.bool)
    for lease, tokens in zip(leases, (41, 22, 10), strict=True):
        for at in range(tokens):
            expected[made._held[lease][at // 16], at % 16] = True
    written = ~made.pool.isnan().all(-1).all(-1).cpu()  # [layers, pages, 2, PAGE_SIZE]
    assert torch.equal(written, expected[None, :, None].expand_as(written))
    for lease in leases:
        mixed.leave(lease)
    mixed.settle()
    assert made.pages_held == 0
