"""The first launches of a decode step: new pages go into the tables, then each place gets its token and slot."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from semipd.core.config import PAGE_SIZE

PIECE = 128


@triton.jit
def _update(words, where, values, count, piece: tl.constexpr):
    at = tl.program_id(0) * piece + tl.arange(0, piece)
    place = tl.load(where + at, mask=at < count, other=-1)
    value = tl.load(values + at, mask=at < count, other=0)
    tl.store(words + place, value, mask=place >= 0)


def update(words: torch.Tensor, where: torch.Tensor, values: torch.Tensor) -> None:
    """Sets words.view(-1)[where] = values, except where `where` is -1. All are int32."""
    _update[(triton.cdiv(len(where), PIECE),)](words, where, values, len(where), PIECE, num_warps=4)


@triton.jit(do_not_specialize=["places"])  # any number of rows may come, and none must wait for a compilation
def _feed(
    rows, contexts, fed, tables, tokens, slots, places, table_width: tl.constexpr,
    page_size: tl.constexpr, pad: tl.constexpr, piece: tl.constexpr,
):  # fmt: skip
    at = tl.program_id(0) * piece + tl.arange(0, piece)
    inside = at < places
    row = tl.load(rows + at, mask=inside, other=-1)
    real = inside & (row >= 0)
    context = tl.load(contexts + at, mask=inside, other=0)
    token = tl.load(fed + row, mask=real, other=0)
    page = tl.load(tables + row.to(tl.int64) * table_width + context // page_size, mask=real, other=0)
    written = inside if pad else real
    tl.store(tokens + at, token, mask=written)
    tl.store(slots + at, tl.where(real, page * page_size + context % page_size, -1), mask=written)


def feed(
    rows: torch.Tensor,
    contexts: torch.Tensor,
    fed: torch.Tensor,
    tables: torch.Tensor,
    tokens: torch.Tensor,
    slots: torch.Tensor,
    *,
    pad: bool = True,
) -> None:
    """Fills in tokens [places], from those sampled last (`fed` [rows]), and slots [places] int32: where their keys go.

    A place of row -1 is padding, and gets slot -1. Not `pad`: it is left as it is.
    """
    places = len(tokens)
    _feed[(triton.cdiv(places, PIECE),)](
        rows, contexts, fed, tables, tokens, slots, places, tables.shape[1], PAGE_SIZE, pad, PIECE, num_warps=4
    )
