"""Attention of one new token of each row over its pages. The work is split over the keys, and evenly over the GPU.

The caller cuts the rows' contexts into items of similar length (see `cut`). A fixed number of programs goes through all
pairs of an item and a KV head, so that one captured launch serves any mixture of lengths. A second launch merges the
results of a row's items (Flash-Decoding; Dao et al., 2023). The query heads of a KV head are computed together.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
import triton
import triton.language as tl

from semipd.core.config import PAGE_SIZE

GRAIN = 64
"""Items are cut at multiples of this many tokens."""
PROGRAMS_AN_SM = 6
"""Programs for each SM, with BLOCK tokens in flight each. Measured on an H200, together with BLOCK, STAGES and
WARPS."""
BLOCK, STAGES, WARPS = 32, 3, 2
ITEM_FIELDS = 3
"""The fields of an item: row of the batch, first token, end."""
ROUNDS = 4
"""Items for each program, about: enough that no program has much more to do than the others."""


@triton.jit
def _attend(
    queries, pool, tables, rows, items, count, out, partial, partial_lse, alone, scale,
    item_capacity: tl.constexpr, table_width: tl.constexpr, heads: tl.constexpr, kv_heads: tl.constexpr,
    dim: tl.constexpr, dim_block: tl.constexpr, group_block: tl.constexpr, page_size: tl.constexpr,
    block: tl.constexpr, precision: tl.constexpr, stages: tl.constexpr,
):  # fmt: skip
    group: tl.constexpr = heads // kv_heads
    side: tl.constexpr = page_size * kv_heads * dim
    in_group = tl.arange(0, group_block)
    d = tl.arange(0, dim_block)
    step = tl.arange(0, block)
    total = tl.load(count) * kv_heads
    for work in range(tl.program_id(0), total, tl.num_programs(0)):
        item = work // kv_heads
        kv_head = work % kv_heads
        place = tl.load(items + item).to(tl.int64)
        first = tl.load(items + item_capacity + item)
        end = tl.load(items + 2 * item_capacity + item)
        table = tables + tl.load(rows + place).to(tl.int64) * table_width
        query_at = (place * heads + kv_head * group + in_group[:, None]) * dim + d[None, :]
        wanted = (in_group[:, None] < group) & (d[None, :] < dim)
        query = tl.load(queries + query_at, mask=wanted, other=0.0)
        best = tl.full([group_block], -float("inf"), tl.float32)
        weight = tl.zeros([group_block], tl.float32)
        seen = tl.zeros([group_block, dim_block], tl.float32)
        for start in tl.range(first, end, block, num_stages=stages):
            token = start + step
            there = token < end
            # Beyond the end the last token is loaded again and its score is masked, so that keys are loaded without a
            # mask.
            near = tl.minimum(token, end - 1)
            page = tl.load(table + near // page_size).to(tl.int64)
            at = page * 2 * side + (near % page_size) * kv_heads * dim + kv_head * dim
            if dim == dim_block:
                key = tl.load(pool + at[:, None] + d[None, :])
                value = tl.load(pool + at[:, None] + side + d[None, :])
            else:
                key = tl.load(pool + at[:, None] + d[None, :], mask=d[None, :] < dim, other=0.0)
                value = tl.load(pool + at[:, None] + side + d[None, :], mask=d[None, :] < dim, other=0.0)
            score = tl.dot(query, tl.trans(key), input_precision=precision) * scale
            score = tl.where(there[None, :], score, -float("inf"))
            higher = tl.maximum(best, tl.max(score, 1))
            chance = tl.math.exp2(score - higher[:, None])
            faded = tl.math.exp2(best - higher)
            weight = weight * faded + tl.sum(chance, 1)
            seen = seen * faded[:, None] + tl.dot(chance.to(value.dtype), value, input_precision=precision)
            best = higher
        seen = seen / weight[:, None]
        if tl.load(alone + item) != 0:
            tl.store(out + query_at, seen.to(out.dtype.element_ty), mask=wanted)
        else:
            part = (item * heads + kv_head * group + in_group).to(tl.int64)
            tl.store(partial + part[:, None] * dim + d[None, :], seen, mask=wanted)
            tl.store(partial_lse + part, best + tl.math.log2(weight), mask=in_group < group)


@triton.jit
def _merge(partial, partial_lse, first_item, out, heads: tl.constexpr, dim: tl.constexpr, dim_block: tl.constexpr):
    place = tl.program_id(0)
    head = tl.program_id(1)
    first = tl.load(first_item + place)
    end = tl.load(first_item + place + 1)
    if end - first > 1:
        d = tl.arange(0, dim_block)
        best = -float("inf")
        weight = 0.0
        seen = tl.zeros([dim_block], tl.float32)
        for item in range(first, end):
            part = (item * heads + head).to(tl.int64)
            lse = tl.load(partial_lse + part)
            value = tl.load(partial + part * dim + d, mask=d < dim, other=0.0)
            higher = tl.maximum(best, lse)
            faded = tl.math.exp2(best - higher)
            share = tl.math.exp2(lse - higher)
            weight = weight * faded + share
            seen = seen * faded + value * share
            best = higher
        where = (place.to(tl.int64) * heads + head) * dim + d
        tl.store(out + where, (seen / weight).to(out.dtype.element_ty), mask=d < dim)


def cut(
    contexts: npt.NDArray[np.int64], window: int | None, kv_heads: int, programs: int
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    """Cuts rows, which attend to contexts + 1 tokens each, into items whose greatest length it chooses.

    Returns the items [ITEM_FIELDS, items], and where each row's items begin, [rows + 1]. `window`: the most tokens that
    a row sees; None: all.
    """
    ends = contexts + 1
    firsts = np.zeros_like(ends) if window is None else np.maximum(ends - window, 0)
    grains = -(-(ends - firsts) // GRAIN)
    chunk = -(-int(grains.sum()) // wanted_items(kv_heads, programs))
    each = -(-grains // -(-grains // chunk))  # the items of a row have nearly the same length
    pieces = -(-grains // each)
    begins = np.zeros(len(ends) + 1, np.int32)
    np.cumsum(pieces, out=begins[1:])
    place = np.repeat(np.arange(len(ends)), pieces)
    nth = np.arange(int(begins[-1])) - begins[place]
    length = each[place] * GRAIN
    first = firsts[place] + nth * length
    items = np.stack((place, first, np.minimum(first + length, ends[place]))).astype(np.int32)
    return items, begins


def wanted_items(kv_heads: int, programs: int) -> int:
    """Returns the number of items with which each program has ROUNDS of them."""
    return max(1, ROUNDS * programs // kv_heads)


def item_capacity(rows: int, kv_heads: int, programs: int) -> int:
    """Returns the most items that `cut` makes of `rows` rows."""
    return rows + wanted_items(kv_heads, programs) + 1


class DecodeScratch:
    """Buffers on the device for the results of items, for all launches. Several windows have items of their own."""

    def __init__(self, rows: int, heads: int, kv_heads: int, dim: int, programs: int, device: torch.device) -> None:
        self.programs = programs
        self.items = item_capacity(rows, kv_heads, programs)
        self.partial = torch.empty((self.items, heads, dim), dtype=torch.float32, device=device)
        self.lse = torch.empty((self.items, heads), dtype=torch.float32, device=device)


def attend(
    queries: torch.Tensor,
    pool: torch.Tensor,
    tables: torch.Tensor,
    rows: torch.Tensor,
    cuts: tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor],
    scratch: DecodeScratch,
    out: torch.Tensor,
) -> None:
    """Computes attention from queries [places, heads, head_dim] into out, of the same shape.

    pool [pages, 2, PAGE_SIZE, kv_heads, head_dim]; tables [rows, width] int32. `rows` [places]: which row of the tables
    each place of the batch has. `cuts`: items [ITEM_FIELDS, capacity], their number [1], whether an item is the only
    one of its row [capacity], and where each place's items begin [places + 1].
    """
    places, heads, dim = queries.shape
    kv_heads = pool.shape[3]
    items, count, alone, begins = cuts
    wide = queries.dtype == torch.float32
    dim_block = max(16, triton.next_power_of_2(dim))
    scale = dim**-0.5 * 1.4426950408889634
    _attend[(scratch.programs,)](
        queries, pool, tables, rows, items, count, out, scratch.partial, scratch.lse, alone, scale,
        items.shape[1], tables.shape[1], heads, kv_heads, dim, dim_block,
        max(16, triton.next_power_of_2(heads // kv_heads)), PAGE_SIZE,
        BLOCK, "ieee" if wide else "tf32", 1 if wide or dim_block > 128 else STAGES,
        num_warps=WARPS,
    )  # fmt: skip
    _merge[(places, heads)](scratch.partial, scratch.lse, begins, out, heads, dim, dim_block, num_warps=1)
