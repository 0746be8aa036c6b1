"""A sequence reads the places of its own tokens alone, and writes into its own pages alone."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from semipd.core.config import PAGE_SIZE
from semipd.core.request import StoppingParams
from support.device_rig import Rig
from support.reference import error, random_tokens
from support.wish import GREEDY, Wish

pytestmark = pytest.mark.gpu

FAMILIES = ("llama", "llama, head_dim 128", "llama, biases and explicit head_dim", "mistral, sliding window")
TYPES = [pytest.param(torch.float32, id="float32"), pytest.param(torch.bfloat16, id="bfloat16")]
LENGTHS = (1, 15, 16, 17, 33, 90)
CUTS = (16, 1, 33, 7)


def seen(made: Rig) -> list[torch.Tensor]:
    """Logits of chunked prefill, then of three steps of a batch."""
    sequences = [random_tokens(n) for n in LENGTHS]
    rows = made.forced(sequences, CUTS)
    for number, tokens in enumerate(sequences):
        made.adopt(tokens, number, GREEDY, StoppingParams(50))
    for _ in range(3):
        made.step()
        rows.append(made.batch.last_logits()[: len(LENGTHS)].float().cpu())
    return rows


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("family", FAMILIES)
def test_what_lies_in_the_pool_before_changes_nothing(family: str, dtype: torch.dtype, rig: Callable[..., Rig]) -> None:
    clean = seen(rig(family, dtype, fill=0.0))

    for poison in (math.nan, math.inf, -3e4):
        assert error(seen(rig(family, dtype, fill=poison)), clean) < (1e-5 if dtype is torch.float32 else 1e-2)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_is_written_into_the_pages_of_others(family: str, dtype: torch.dtype, rig: Callable[..., Rig]) -> None:
    """Neither chunks nor the rows with which a batch may be padded write there. Its own tokens' places are all
    written."""
    blank = 7.0
    made = rig(family, dtype, pages=40, fill=blank, capture=True)
    lengths = (5, 16, 31)
    leases = [made.adopt(random_tokens(n), n, GREEDY, StoppingParams(50)) for n in lengths]
    for _ in range(3):
        made.step()
    made.settle()
    made.synchronise()

    own = torch.zeros(made.pool.shape[1], PAGE_SIZE, dtype=torch.bool)
    mine = torch.zeros(made.pool.shape[1], dtype=torch.bool)
    for lease, length in zip(leases, lengths, strict=True):
        pages = made.take(lease, 0)
        mine[pages] = True
        for place in range(length + 3):
            own[pages[place // PAGE_SIZE], place % PAGE_SIZE] = True
    untouched = (made.pool == blank).permute(1, 3, 0, 2, 4, 5).flatten(2).cpu()
    assert untouched[~mine].all()
    assert not untouched[own].all(-1).any()


def test_pages_come_back_only_when_nothing_touches_them(rig: Callable[..., Rig]) -> None:
    """A sequence that leaves in the middle of a step is named by `quiet` when that step is over, once."""
    made = rig()
    made.admit([Wish(random_tokens(n)) for n in (3, 20)])
    staying, leaving = made.batch.leases()
    made.batch.step(made.pulse)

    made.batch.remove(leaving)
    quiet = [lease for _ in range(3) for lease in (made.batch.step(made.pulse), *made.batch.quiet())[1:]]
    made.batch.drain(made.pulse)

    assert made.batch.leases() == [staying]
    assert [*quiet, *made.batch.quiet()] == [leaving]
