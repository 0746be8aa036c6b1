"""RMS norm, rotation with the KV write, and SiLU gate: one launch each, for any batch."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from semipd.core.config import PAGE_SIZE

HEADS_A_PROGRAM = 8


@triton.jit
def _rms_norm(x, weight, out, eps, width: tl.constexpr, block: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, block)
    inside = at < width
    value = tl.load(x + row * width + at, mask=inside, other=0.0).to(tl.float32)
    scale = tl.math.rsqrt(tl.sum(value * value, 0) / width + eps)
    normed = value * scale * tl.load(weight + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row * width + at, normed.to(out.dtype.element_ty), mask=inside)


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float, out: torch.Tensor) -> None:
    """Normalises [rows, width] into out. Computes in float32."""
    rows, width = x.shape
    _rms_norm[(rows,)](x, weight, out, eps, width, triton.next_power_of_2(width), num_warps=8 if width > 2048 else 4)


@triton.jit
def _silu_gate(gate_up, out, inner: tl.constexpr, block: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * block + tl.arange(0, block)
    inside = at < inner
    gate = tl.load(gate_up + row * 2 * inner + at, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_up + row * 2 * inner + inner + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row * inner + at, (gate * tl.sigmoid(gate) * up).to(out.dtype.element_ty), mask=inside)


def silu_gate(gate_up: torch.Tensor, out: torch.Tensor) -> None:
    """Computes silu(gate) * up: [rows, 2 * inner] -> [rows, inner]."""
    rows, inner = out.shape
    block = min(2048, triton.next_power_of_2(inner))
    _silu_gate[(rows, triton.cdiv(inner, block))](gate_up, out, inner, block, num_warps=8 if block == 2048 else 4)


@triton.jit
def _rotate_and_write(
    qkv, bias, q_norm, k_norm, queries, pool, cos, sin, positions, slots, eps,
    heads: tl.constexpr, kv_heads: tl.constexpr, dim: tl.constexpr, half_block: tl.constexpr,
    page_size: tl.constexpr, group: tl.constexpr, has_bias: tl.constexpr, has_norm: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * group + tl.arange(0, group)
    at = tl.arange(0, half_block)
    half: tl.constexpr = dim // 2
    rows: tl.constexpr = heads + 2 * kv_heads
    inside = (head[:, None] < rows) & (at[None, :] < half)
    low = token * rows * dim + head[:, None] * dim + at[None, :]
    a = tl.load(qkv + low, mask=inside, other=0.0).to(tl.float32)
    b = tl.load(qkv + low + half, mask=inside, other=0.0).to(tl.float32)
    if has_bias:
        in_bias = head[:, None] * dim + at[None, :]
        a += tl.load(bias + in_bias, mask=inside, other=0.0).to(tl.float32)
        b += tl.load(bias + in_bias + half, mask=inside, other=0.0).to(tl.float32)
    is_query = head < heads
    is_value = head >= heads + kv_heads
    if has_norm:
        scale = tl.math.rsqrt((tl.sum(a * a, 1) + tl.sum(b * b, 1)) / dim + eps)
        halves = at[None, :] < half
        qa = tl.load(q_norm + at[None, :], mask=halves, other=0.0).to(tl.float32)
        qb = tl.load(q_norm + half + at[None, :], mask=halves, other=0.0).to(tl.float32)
        ka = tl.load(k_norm + at[None, :], mask=halves, other=0.0).to(tl.float32)
        kb = tl.load(k_norm + half + at[None, :], mask=halves, other=0.0).to(tl.float32)
        a = tl.where(is_value[:, None], a, a * scale[:, None] * tl.where(is_query[:, None], qa, ka))
        b = tl.where(is_value[:, None], b, b * scale[:, None] * tl.where(is_query[:, None], qb, kb))
    position = tl.load(positions + token).to(tl.int64)
    turn = position * half + at[None, :]
    c = tl.load(cos + turn, mask=at[None, :] < half, other=0.0)
    s = tl.load(sin + turn, mask=at[None, :] < half, other=0.0)
    turned_a = tl.where(is_value[:, None], a, a * c - b * s)
    turned_b = tl.where(is_value[:, None], b, b * c + a * s)
    kind = queries.dtype.element_ty
    to_query = inside & is_query[:, None]
    where = token * heads * dim + head[:, None] * dim + at[None, :]
    tl.store(queries + where, turned_a.to(kind), mask=to_query)
    tl.store(queries + where + half, turned_b.to(kind), mask=to_query)
    slot = tl.load(slots + token).to(tl.int64)
    if slot >= 0:  # padding has none
        side: tl.constexpr = page_size * kv_heads * dim
        kv_head = tl.where(is_value, head - heads - kv_heads, head - heads)
        base = (slot // page_size) * 2 * side + (slot % page_size) * kv_heads * dim
        place = base + tl.where(is_value, side, 0)[:, None] + kv_head[:, None] * dim + at[None, :]
        to_pool = inside & (head[:, None] >= heads)
        tl.store(pool + place, turned_a.to(kind), mask=to_pool)
        tl.store(pool + place + half, turned_b.to(kind), mask=to_pool)


def rotate_and_write(
    qkv: torch.Tensor,
    queries: torch.Tensor,
    pool: torch.Tensor,
    rotation: tuple[torch.Tensor, torch.Tensor],
    positions: torch.Tensor,
    slots: torch.Tensor,
    bias: torch.Tensor | None,
    norms: tuple[torch.Tensor, torch.Tensor] | None,
    eps: float,
) -> None:
    """Applies bias, norm of heads and rotation. Queries go to `queries`, keys and values into the layer's pool.

    qkv [tokens, (heads + 2 kv_heads) * head_dim]; queries [tokens, heads, head_dim]; pool [pages, 2, PAGE_SIZE,
    kv_heads, head_dim]; rotation: cosine and sine, [positions, head_dim / 2] float32 each, read at `positions`
    [tokens]; slots [tokens]: page * PAGE_SIZE + place in the page, or -1 for padding, whose keys and values go nowhere.
    """
    tokens, heads, dim = queries.shape
    kv_heads = pool.shape[3]
    cos, sin = rotation
    group = HEADS_A_PROGRAM
    q_norm, k_norm = norms if norms is not None else (qkv, qkv)
    _rotate_and_write[(tokens, triton.cdiv(heads + 2 * kv_heads, group))](
        qkv, qkv if bias is None else bias, q_norm, k_norm, queries, pool, cos, sin, positions, slots, eps,
        heads, kv_heads, dim, triton.next_power_of_2(dim // 2), PAGE_SIZE, group, bias is not None, norms is not None,
        num_warps=4,
    )  # fmt: skip
