"""Causal attention of new tokens over their pages, for every type, head size and window. It can be captured.

The loop is FlashAttention 2's (Dao, 2023), over paged keys. The caller says which block of queries each program has, so
one captured launch serves any mixture of prompts. Long prompts on a GPU go to FlashInfer where it has the kernel.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from semipd.core.config import PAGE_SIZE

QUERY_BLOCK = 64
BLOCK_FIELDS = 5
"""The fields of a block: first token in the pass, tokens, position of the first one, row of the table, and padding."""


@triton.jit
def _attend(
    queries, pool, tables, blocks, count, out, scale,
    capacity: tl.constexpr, table_width: tl.constexpr, heads: tl.constexpr, kv_heads: tl.constexpr,
    dim: tl.constexpr, dim_block: tl.constexpr, page_size: tl.constexpr, window: tl.constexpr,
    query_block: tl.constexpr, key_block: tl.constexpr, precision: tl.constexpr, stages: tl.constexpr,
):  # fmt: skip
    which = tl.program_id(0)
    if which < tl.load(count):
        head = tl.program_id(1)
        kv_head = head // (heads // kv_heads)
        side: tl.constexpr = page_size * kv_heads * dim
        first = tl.load(blocks + which).to(tl.int64)
        tokens = tl.load(blocks + capacity + which)
        position = tl.load(blocks + 2 * capacity + which)
        table = tables + tl.load(blocks + 3 * capacity + which).to(tl.int64) * table_width
        nth = tl.arange(0, query_block)
        d = tl.arange(0, dim_block)
        query_at = ((first + nth[:, None]) * heads + head) * dim + d[None, :]
        wanted = (nth[:, None] < tokens) & (d[None, :] < dim)
        query = tl.load(queries + query_at, mask=wanted, other=0.0)
        best = tl.full([query_block], -float("inf"), tl.float32)
        weight = tl.zeros([query_block], tl.float32)
        seen = tl.zeros([query_block, dim_block], tl.float32)
        end = position + tokens
        begin = 0
        if window > 0:
            begin = tl.maximum(position + 1 - window, 0) // key_block * key_block
        for start in tl.range(begin, end, key_block, num_stages=stages):
            token = start + tl.arange(0, key_block)
            there = token < end
            page = tl.load(table + token // page_size, mask=there, other=0).to(tl.int64)
            at = page * 2 * side + (token % page_size) * kv_heads * dim + kv_head * dim
            mask = there[:, None] & (d[None, :] < dim)
            key = tl.load(pool + at[:, None] + d[None, :], mask=mask, other=0.0)
            value = tl.load(pool + at[:, None] + side + d[None, :], mask=mask, other=0.0)
            score = tl.dot(query, tl.trans(key), input_precision=precision) * scale
            visible = token[None, :] <= (position + nth)[:, None]
            if window > 0:
                visible = visible & (token[None, :] > (position + nth)[:, None] - window)
            score = tl.where(visible & there[None, :], score, -float("inf"))
            higher = tl.maximum(best, tl.max(score, 1))
            # A query that sees nothing so far has no best score, and the difference of two infinities is not a number.
            settled = tl.where(higher == -float("inf"), 0.0, higher)
            chance = tl.math.exp2(score - settled[:, None])
            faded = tl.math.exp2(best - settled)
            weight = weight * faded + tl.sum(chance, 1)
            seen = seen * faded[:, None] + tl.dot(chance.to(value.dtype), value, input_precision=precision)
            best = higher
        seen = seen / tl.where(weight == 0.0, 1.0, weight)[:, None]
        tl.store(out + query_at, seen.to(out.dtype.element_ty), mask=wanted)


def attend(
    queries: torch.Tensor,
    pool: torch.Tensor,
    tables: torch.Tensor,
    blocks: torch.Tensor,
    count: torch.Tensor,
    window: int | None,
    most_blocks: int,
    out: torch.Tensor,
) -> None:
    """Computes attention from queries [tokens, heads, head_dim] into out, of the same shape.

    pool [pages, 2, PAGE_SIZE, kv_heads, head_dim]; tables [rows, width] int32.

    `blocks` [BLOCK_FIELDS, capacity]: at most QUERY_BLOCK consecutive tokens of one prompt each. `count` [1]: the
    number of blocks, at most `most_blocks`. Keys and values of all tokens are in the pool already.
    """
    _, heads, dim = queries.shape
    kv_heads = pool.shape[3]
    wide = queries.dtype == torch.float32
    dim_block = max(16, triton.next_power_of_2(dim))
    small = wide or dim_block > 128
    _attend[(most_blocks, heads)](
        queries, pool, tables, blocks, count, out, dim**-0.5 * 1.4426950408889634,
        blocks.shape[1], tables.shape[1], heads, kv_heads, dim, dim_block, PAGE_SIZE, window or 0,
        QUERY_BLOCK, 32 if small else 64, "ieee" if wide else "tf32", 1 if small else 3,
        num_warps=4,
    )  # fmt: skip
