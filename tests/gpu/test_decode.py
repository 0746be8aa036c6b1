"""A step of decoding gives what prefill gives: the same logits, at every batch size and length."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch

from semipd.core.request import StoppingParams
from support.device_rig import Rig
from support.reference import error, random_tokens
from support.wish import GREEDY

pytestmark = pytest.mark.gpu

STEPS = 3
BORDERS = (15, 16, 17, 31, 32, 33)
FAMILIES = ("llama", "llama, head_dim 128", "llama, biases and explicit head_dim", "mistral, sliding window", "qwen3")
TYPES = [pytest.param(torch.float32, id="float32"), pytest.param(torch.bfloat16, id="bfloat16")]


def decoded(made: Rig, contexts: Sequence[int]) -> tuple[list[list[int]], list[torch.Tensor]]:
    """Sequences of these lengths decoded together for STEPS steps: their tokens, and the logits of each step."""
    leases = [made.adopt(random_tokens(n, seed), seed, GREEDY, StoppingParams(100)) for seed, n in enumerate(contexts)]
    logits: dict[int, list[torch.Tensor]] = {lease: [] for lease in leases}
    for _ in range(STEPS):
        order = made.batch.leases()
        made.step()
        for lease, row in zip(order, made.batch.last_logits().float().cpu(), strict=False):
            logits[lease].append(row)
    made.settle()
    answers = [made.answers[lease] for lease in leases]
    sequences = [[*a.wish.prompt, *a.wish.output, *a.tokens[: STEPS - 1]] for a in answers]
    for lease in leases:
        made.leave(lease)
    made.settle()
    return sequences, [torch.stack(logits[lease]) for lease in leases]


def check(made: Rig, exact: Rig, contexts: Sequence[int], dtype: torch.dtype) -> None:
    """Compares in float32 to rounding; in bfloat16, decoding is as near to float32 as prefill is."""
    sequences, steps = decoded(made, contexts)
    prefilled = [rows[-STEPS:] for rows in made.forced(sequences)]
    if dtype is torch.float32:
        apart = max(error([a], [b]) for a, b in zip(steps, prefilled, strict=True))
        assert apart < 1e-4
        return
    wanted = [rows[-STEPS:] for rows in exact.forced(sequences)]
    assert error(steps, wanted) <= 1.5 * error(prefilled, wanted) + 2e-3
    worst = max(error([a], [b]) for a, b in zip(steps, wanted, strict=True))
    assert worst <= 3 * max(error([a], [b]) for a, b in zip(prefilled, wanted, strict=True)) + 5e-3


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("family", FAMILIES)
def test_equals_prefill_at_every_batch_size_and_around_the_borders_of_pages(
    family: str, dtype: torch.dtype, rig: Callable[..., Rig]
) -> None:
    options = {"pages": 700, "capture": True}
    made = rig(family, dtype, **options)
    exact = made if dtype is torch.float32 else rig(family, **options)

    for batch in (1, 3, 17, 64):
        check(made, exact, [BORDERS[i % 6] + 64 * (i // 6 % 3) for i in range(batch)], dtype)
    assert made.pages_held == 0


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("family", ["llama", "llama, head_dim 128", "mistral, sliding window"])
def test_equals_prefill_in_a_long_context_beside_short_ones(
    family: str, dtype: torch.dtype, rig: Callable[..., Rig]
) -> None:
    options = {
        "pages": 500,
        "changes": {"max_position_embeddings": 4096},
        "max_context": 4096,
        "max_batch_tokens": 1000,
        "capture": True,
    }
    made = rig(family, dtype, **options)
    exact = made if dtype is torch.float32 else rig(family, **options)

    check(made, exact, [3000, 1, 31, 2047, 16], dtype)


def test_a_sequence_without_a_page_waits_and_the_others_go_on(rig: Callable[..., Rig]) -> None:
    made = rig()
    waiting = made.adopt(random_tokens(16), 7, GREEDY, StoppingParams(50))
    going = made.adopt(random_tokens(17), 8, GREEDY, StoppingParams(50))
    assert made.batch.wanting_pages() == [waiting]

    for _ in range(2):
        made.batch.step(made.pulse)
    alone = [lease for lease, _ in made.batch.drain(made.pulse)]

    assert alone == [going]
    assert made.batch.wanting_pages() == [waiting]


def test_one_that_leaves_before_its_first_step_leaves_no_trace(rig: Callable[..., Rig]) -> None:
    made = rig()
    for number in range(30):
        made.leave(made.adopt(random_tokens(40, number), number, GREEDY, StoppingParams(50)))
        made.settle()
    assert made.pages_held == 0

    check(made, made, [17, 33], torch.float32)
