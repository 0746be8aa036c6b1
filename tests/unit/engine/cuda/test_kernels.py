"""Each kernel against the same in plain torch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention, silu

from semipd.core.config import PAGE_SIZE
from semipd.engine.cuda.kernels import decode_attention, elementwise, feeding, prefill_attention

POISON = float("nan")


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_rms_norm(device: torch.device) -> None:
    x, weight = random(3, 48).to(device), random(48, seed=1).to(device)
    out = torch.full_like(x, POISON)
    elementwise.rms_norm(x, weight, 1e-5, out)
    torch.testing.assert_close(out, torch.nn.functional.rms_norm(x, (48,), weight, 1e-5))


def test_silu_gate(device: torch.device) -> None:
    x = random(3, 2 * 40).to(device)
    out = torch.full((3, 40), POISON, device=device)
    elementwise.silu_gate(x, out)
    torch.testing.assert_close(out, silu(x[:, :40]) * x[:, 40:])


@pytest.mark.parametrize("dim", [8, 12])
@pytest.mark.parametrize("extras", [False, True])
def test_rotation_writes_queries_and_pool_and_nothing_else(device: torch.device, dim: int, extras: bool) -> None:
    heads, kv_heads, tokens = 6, 2, 3
    rows = heads + 2 * kv_heads
    qkv = random(tokens, rows * dim).to(device)
    bias = random(rows * dim, seed=2).to(device) if extras else None
    norms = (random(dim, seed=3).to(device), random(dim, seed=4).to(device)) if extras else None
    angles = random(50, dim // 2, seed=5)
    rotation = angles.cos().to(device), angles.sin().to(device)
    positions = torch.tensor([0, 7, 49], dtype=torch.int32, device=device)
    slots = torch.tensor([PAGE_SIZE + 3, -1, 0], dtype=torch.int32, device=device)
    pool = torch.full((2, 2, PAGE_SIZE, kv_heads, dim), 9.0, device=device)
    queries = torch.full((tokens, heads, dim), POISON, device=device)
    elementwise.rotate_and_write(qkv, queries, pool, rotation, positions, slots, bias, norms, 1e-6)

    x = (qkv if bias is None else qkv + bias).view(tokens, rows, dim)
    q, k, v = x[:, :heads], x[:, heads : heads + kv_heads], x[:, heads + kv_heads :]
    if norms is not None:
        q = torch.nn.functional.rms_norm(q, (dim,), norms[0], 1e-6)
        k = torch.nn.functional.rms_norm(k, (dim,), norms[1], 1e-6)

    def turned(y: torch.Tensor) -> torch.Tensor:
        c, s = (t[positions.long()][:, None] for t in rotation)
        a, b = y[..., : dim // 2], y[..., dim // 2 :]
        return torch.cat((a * c - b * s, b * c + a * s), -1)

    torch.testing.assert_close(queries, turned(q))
    expected = torch.full_like(pool, 9.0)
    for token, slot in enumerate(slots.tolist()):
        if slot >= 0:
            expected[slot // PAGE_SIZE, 0, slot % PAGE_SIZE] = turned(k)[token]
            expected[slot // PAGE_SIZE, 1, slot % PAGE_SIZE] = v[token]
    torch.testing.assert_close(pool, expected)


class Paged:
    """Sequences of some lengths, in pages of a pool whose rest is poison."""

    def __init__(self, lengths: list[int], kv_heads: int, dim: int, device: torch.device) -> None:
        self.keys = [random(n, kv_heads, dim, seed=10 + i).to(device) for i, n in enumerate(lengths)]
        self.values = [random(n, kv_heads, dim, seed=50 + i).to(device) for i, n in enumerate(lengths)]
        most = max(-(-n // PAGE_SIZE) for n in lengths)
        count = len(lengths) * most + 3
        order = np.random.default_rng(0).permutation(count)
        self.tables = torch.zeros((len(lengths), most + 1), dtype=torch.int32, device=device)
        self.pool = torch.full((count, 2, PAGE_SIZE, kv_heads, dim), POISON, device=device)
        for row, n in enumerate(lengths):
            for page in range(-(-n // PAGE_SIZE)):
                number = int(order[row * most + page])
                self.tables[row, page] = number
                part = slice(page * PAGE_SIZE, min(n, (page + 1) * PAGE_SIZE))
                self.pool[number, 0, : part.stop - part.start] = self.keys[row][part]
                self.pool[number, 1, : part.stop - part.start] = self.values[row][part]

    def attended(self, row: int, queries: torch.Tensor, start: int, window: int | None) -> torch.Tensor:
        """queries [tokens, heads, dim] at positions start onwards."""
        n = start + len(queries)
        k, v = self.keys[row][:n].transpose(0, 1)[None], self.values[row][:n].transpose(0, 1)[None]
        q_at = torch.arange(start, n, device=queries.device)[:, None]
        k_at = torch.arange(n, device=queries.device)[None]
        seen = k_at <= q_at
        if window is not None:
            seen &= k_at > q_at - window
        found = scaled_dot_product_attention(queries.transpose(0, 1)[None], k, v, seen, enable_gqa=True)
        return found[0].transpose(0, 1)


@pytest.mark.parametrize("window", [None, 20])
@pytest.mark.parametrize("dim", [16, 24])
@pytest.mark.parametrize("lengths", [[1, 16, 17, 33], [500, 3, 70]])
def test_decode_attention(device: torch.device, window: int | None, dim: int, lengths: list[int]) -> None:
    heads, kv_heads, programs = 4, 2, 5
    paged = Paged(lengths, kv_heads, dim, device)
    scratch = decode_attention.DecodeScratch(8, heads, kv_heads, dim, programs, device)
    order = list(reversed(range(len(lengths))))
    rows = torch.tensor([*order, -1], dtype=torch.int32, device=device)
    contexts = np.array([lengths[row] - 1 for row in order])
    items, begins = decode_attention.cut(contexts, window, kv_heads, programs)
    assert items.shape[1] <= scratch.items
    on_device = torch.zeros((decode_attention.ITEM_FIELDS, scratch.items), dtype=torch.int32)
    on_device[:, : items.shape[1]] = torch.from_numpy(items)
    alone = torch.zeros(scratch.items, dtype=torch.int32)
    alone[: items.shape[1]] = torch.from_numpy((np.diff(begins)[items[0]] == 1).astype(np.int32))
    padded = torch.tensor([*begins.tolist(), int(begins[-1])], dtype=torch.int32)
    queries = random(len(lengths) + 1, heads, dim, seed=7).to(device)
    out = torch.full_like(queries, 5.0)
    count = torch.tensor([items.shape[1]], dtype=torch.int32)
    cuts = on_device.to(device), count.to(device), alone.to(device), padded.to(device)
    decode_attention.attend(queries, paged.pool, paged.tables, rows, cuts, scratch, out)
    for place, row in enumerate(order):
        expected = paged.attended(row, queries[place : place + 1], lengths[row] - 1, window)
        torch.testing.assert_close(out[place : place + 1], expected, rtol=1e-4, atol=1e-5)
    assert (out[-1] == 5.0).all(), "padding has no items"


def test_items_cover_every_token_once_and_fit() -> None:
    rng = np.random.default_rng(1)
    for _ in range(200):
        rows, kv_heads, programs = int(rng.integers(1, 200)), int(rng.choice([1, 2, 8])), int(rng.choice([40, 264]))
        contexts = rng.integers(0, rng.choice([5, 300, 20000]), rows)
        items, begins = decode_attention.cut(contexts, None, kv_heads, programs)
        assert items.shape[1] == begins[-1] <= decode_attention.item_capacity(rows, kv_heads, programs)
        for row in range(rows):
            mine = items[:, begins[row] : begins[row + 1]]
            assert (mine[0] == row).all()
            assert mine[1, 0] == 0
            assert mine[2, -1] == contexts[row] + 1
            assert (mine[1, 1:] == mine[2, :-1]).all()


@pytest.mark.parametrize("window", [None, 20])
@pytest.mark.parametrize("dim", [16, 24])
def test_prefill_attention(device: torch.device, window: int | None, dim: int) -> None:
    heads, kv_heads, block = 4, 2, prefill_attention.QUERY_BLOCK
    starts, ends = [0, 37, 0], [5, 150, 64]
    paged = Paged(ends, kv_heads, dim, device)
    tokens = sum(e - s for s, e in zip(starts, ends, strict=True))
    queries = random(tokens + 2, heads, dim, seed=8).to(device)
    blocks = []
    first = 0
    for row, (start, end) in enumerate(zip(starts, ends, strict=True)):
        for at in range(0, end - start, block):
            blocks.append((first + at, min(block, end - start - at), start + at, row, 0))
        first += end - start
    capacity = len(blocks) + 3
    table = torch.zeros((prefill_attention.BLOCK_FIELDS, capacity), dtype=torch.int32)
    table[:, : len(blocks)] = torch.tensor(blocks, dtype=torch.int32).T
    out = torch.full_like(queries, 5.0)
    count = torch.tensor([len(blocks)], dtype=torch.int32, device=device)
    prefill_attention.attend(queries, paged.pool, paged.tables, table.to(device), count, window, capacity, out)
    first = 0
    for row, (start, end) in enumerate(zip(starts, ends, strict=True)):
        mine = slice(first, first + end - start)
        torch.testing.assert_close(out[mine], paged.attended(row, queries[mine], start, window), rtol=1e-4, atol=1e-5)
        first += end - start
    assert (out[tokens:] == 5.0).all()


def test_feeding(device: torch.device) -> None:
    tables = torch.zeros((4, 8), dtype=torch.int32, device=device)
    where = torch.full((130,), -1, dtype=torch.int32)
    pages = torch.zeros(130, dtype=torch.int32)
    where[0], pages[0] = 2 * 8 + 1, 11
    where[129], pages[129] = 3 * 8 + 0, 12
    feeding.update(tables, where.to(device), pages.to(device))
    expected = torch.zeros((4, 8), dtype=torch.int32)
    expected[2, 1], expected[3, 0] = 11, 12
    assert torch.equal(tables.cpu(), expected)

    rows = torch.tensor([3, -1, 2], dtype=torch.int32, device=device)
    contexts = torch.tensor([5, 0, 17], dtype=torch.int32, device=device)
    fed = torch.tensor([100, 101, 102, 103], dtype=torch.int32, device=device)
    tokens = torch.full((3,), 77, dtype=torch.int32, device=device)
    slots = torch.full((3,), 77, dtype=torch.int32, device=device)
    feeding.feed(rows, contexts, fed, tables, tokens, slots)
    assert tokens.tolist() == [103, 0, 102]
    assert slots.tolist() == [12 * PAGE_SIZE + 5, -1, 11 * PAGE_SIZE + 1]


def test_feeding_beside_prompts_leaves_their_tokens_alone(device: torch.device) -> None:
    tables = torch.full((2, 4), 3, dtype=torch.int32, device=device)
    rows = torch.tensor([1, -1, -1], dtype=torch.int32, device=device)
    contexts = torch.tensor([PAGE_SIZE + 2, 0, 0], dtype=torch.int32, device=device)
    fed = torch.tensor([100, 101], dtype=torch.int32, device=device)
    tokens, slots = (torch.full((4,), 77, dtype=torch.int32, device=device) for _ in range(2))
    feeding.feed(rows, contexts, fed, tables, tokens[:3], slots[:3], pad=False)
    assert tokens.tolist() == [101, 77, 77, 77]
    assert slots.tolist() == [3 * PAGE_SIZE + 2, 77, 77, 77]
