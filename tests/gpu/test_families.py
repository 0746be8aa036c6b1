"""Every family against transformers: logits in bfloat16, greedy tokens in float32."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from pathlib import Path

import pytest
import torch

from semipd.core.request import StoppingParams
from semipd.engine.cuda import graphs
from support.device_rig import Rig
from support.reference import error, forced, generate, random_tokens
from support.wish import Wish

pytestmark = pytest.mark.gpu

LENGTHS = (1, 5, 16, 33, 70, 130)
CUTS = ((10_000,), (7,), (16, 1, 33))


def test_bfloat16_logits_are_as_near_to_float32_as_those_of_transformers(
    family: str, checkpoint: Callable[..., Path], rig: Callable[..., Rig], device: torch.device
) -> None:
    """Whole prompts and chunks of odd sizes, several sequences to a pass; at most half as far again as transformers."""
    sequences = [random_tokens(length) for length in LENGTHS]
    directory = checkpoint(family)
    exact = forced(directory, device, torch.float32, sequences)
    allowed = 1.5 * error(forced(directory, device, torch.bfloat16, sequences), exact) + 2e-3
    made = rig(family, torch.bfloat16)

    errors = {cuts: error(made.forced(sequences, cuts), exact) for cuts in CUTS}

    assert all(found <= allowed for found in errors.values()), f"{errors}, allowed {allowed}"


def test_float32_logits_equal_those_of_transformers(
    family: str, checkpoint: Callable[..., Path], rig: Callable[..., Rig], device: torch.device
) -> None:
    sequences = [random_tokens(length) for length in LENGTHS]
    exact = forced(checkpoint(family), device, torch.float32, sequences)
    made = rig(family)

    for cuts in CUTS:
        assert error(made.forced(sequences, cuts), exact) < 1e-4


def test_greedy_tokens_equal_those_of_transformers_in_a_batch_that_changes(
    family: str, checkpoint: Callable[..., Path], rig: Callable[..., Rig], device: torch.device
) -> None:
    """Mixed lengths, chunks of odd sizes, sequences that join and leave midway, pages that others used before."""
    wishes = [
        Wish(random_tokens(5), stopping=StoppingParams(96)),
        Wish(random_tokens(40), stopping=StoppingParams(64), chunks=(7,)),
        Wish(random_tokens(16), stopping=StoppingParams(17), chunks=(1,)),
        Wish(random_tokens(100), stopping=StoppingParams(64), chunks=(16, 7, 33, 1), joins_at=9),
        Wish(random_tokens(1), stopping=StoppingParams(20), joins_at=75),
    ]

    answers = rig(family, pages=30, capture=True).run(wishes)

    for wish, answer in zip(wishes, answers, strict=True):
        assert answer.tokens == generate(checkpoint(family), device, wish.prompt, wish.stopping.max_tokens)


def test_greedy_tokens_are_the_same_in_larger_buckets_than_need_be(
    checkpoint: Callable[..., Path], rig: Callable[..., Rig], device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The smallest bucket that holds a pass is slower than a larger one here."""
    if device.type != "cuda":
        pytest.skip("a CPU captures nothing")
    times_ms = (1.1**place for place in count())  # what is captured and timed first, the largest, is the fastest
    monkeypatch.setattr(graphs, "replays_ms", lambda replayed, *_: [next(times_ms) for _ in replayed])
    made = rig(capture=True)
    assert (made.engine.open_prefill().graphs.bucket(1), made.batch.graphs.bucket(1)) == (1024, 64)
    wishes = [Wish(random_tokens(n), stopping=StoppingParams(30), chunks=(n, 7)) for n in (5, 33, 70)]

    for wish, answer in zip(wishes, made.run(wishes), strict=True):
        assert answer.tokens == generate(checkpoint("llama"), device, wish.prompt, wish.stopping.max_tokens)


def test_a_preempted_sequence_goes_on_as_if_nothing_had_been(family: str, rig: Callable[..., Rig]) -> None:
    wish = Wish(random_tokens(45), stopping=StoppingParams(60))
    whole = rig(family).run([wish])[0].tokens
    again = Wish(wish.prompt, stopping=wish.stopping, output=tuple(whole[:31]), chunks=(20,))

    assert rig(family).run([again])[0].tokens == whole[31:]
