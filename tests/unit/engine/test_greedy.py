"""Greedy output equals transformers' `generate`, token for token in float32."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers

from semipd.core.request import StoppingParams
from support.engine_rig import MakeRig
from support.outcomes import sampled
from support.wish import Wish


def generate(directory: Path, prompt: Sequence[int], count: int) -> list[int]:
    """Returns what transformers generates with a fresh model: dynamic RoPE keeps state from one request to the next."""
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    tokens = torch.tensor([prompt])
    with torch.no_grad():
        out = model.generate(
            tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=count, min_new_tokens=count, do_sample=False
        )
    return [int(token) for token in out[0, len(prompt) :]]


def prompt_of(length: int, seed: int = 1) -> list[int]:
    return torch.randint(0, 160, (length,), generator=torch.Generator().manual_seed(seed * 1000 + length)).tolist()


def until(count: int) -> StoppingParams:
    return StoppingParams(max_tokens=count)


def test_equals_transformers_in_a_mixed_batch_of_chunked_prompts(
    family: str, checkpoint: Callable[..., Path], rig: MakeRig, wish: type[Wish]
) -> None:
    """Mixed lengths, chunks of odd sizes, sequences that join and leave midway, and pages that others used before."""
    wishes = [
        wish(prompt_of(5), stopping=until(210)),
        wish(prompt_of(40), stopping=until(30), chunks=(7,)),
        wish(prompt_of(16), stopping=until(17), chunks=(1,)),
        wish(prompt_of(70), stopping=until(60), chunks=(33,)),
        wish(prompt_of(100), stopping=until(40), chunks=(16, 7, 33, 1), joins_at=9),
        wish(prompt_of(33), stopping=until(50), chunks=(16,), joins_at=70),
        wish(prompt_of(1), stopping=until(20), joins_at=75),
    ]

    answers = rig(family, pages=40).run(wishes)

    directory = checkpoint(family)
    for each, answer in zip(wishes, answers, strict=True):
        assert answer.tokens == generate(directory, each.prompt, each.stopping.max_tokens)


def test_resumes_where_it_was_stopped(family: str, rig: MakeRig, wish: type[Wish]) -> None:
    """A preempted sequence is prefilled with its output so far, and goes on as if nothing had been."""
    whole = rig(family).run([wish(prompt_of(45), stopping=until(60))])[0].tokens

    again = rig(family).run([wish(prompt_of(45), stopping=until(60), output=tuple(whole[:31]), chunks=(20,))])[0]

    assert again.tokens == whole[31:]
    assert [sampled(step).position for step in again.steps] == list(range(31, 60))


def test_rows_of_very_different_lengths_are_grouped_without_effect(family: str, rig: MakeRig, wish: type[Wish]) -> None:
    lengths = (400, 3, 5, 8, 13, 21, 34, 380, 55, 4)
    alone = [rig(family).run([wish(prompt_of(n), stopping=until(12))])[0].tokens for n in lengths]

    together = rig(family, pages=120).run([wish(prompt_of(n), stopping=until(12)) for n in lengths])

    assert [answer.tokens for answer in together] == alone


def test_bfloat16_weights_and_pool_are_served(rig: MakeRig, wish: type[Wish]) -> None:
    answer = rig("llama", dtype=torch.bfloat16).run([wish(prompt_of(20), stopping=until(5))])[0]

    assert len(answer.tokens) == 5
