"""Paged attention on a CPU: pages are gathered into contiguous keys and values, and torch's fused kernel attends.

Numbers in a page beyond its sequence's tokens must not reach a result. A mask is not enough: a masked number is still
multiplied by zero, and zero times NaN is NaN. So the rest of a page is cleared when its sequence first writes into it,
and padding refers to pages of the same row.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch.nn.functional import scaled_dot_product_attention

from semipd.core.config import PAGE_SIZE, pages_for
from semipd.core.model import ModelConfig
from semipd.engine.attention import Attention, Pages, TokenSpan

UNEVEN = 2.0
"""Rows are split into groups of similar length where one group would gather more than this many times what is
needed."""
SMALL_GROUP_TOKENS = 2048
"""Rows that gather fewer tokens than this are not split: that would cost more than it saves."""


class CpuPagedAttention:
    """An `AttentionBackend` over `pool` [layers, pages, 2, PAGE_SIZE, kv_heads, head_dim]."""

    def __init__(self, model: ModelConfig, pool: torch.Tensor) -> None:
        self.pool = pool
        self.windows = model.windows
        self.kv_heads, self.head_dim = pool.shape[4], pool.shape[5]
        pages = pool.shape[1]
        # Views of the same memory: halves of pages (all keys or all values of a page), and single tokens.
        self.halves = [layer.view(pages * 2, PAGE_SIZE * self.kv_heads * self.head_dim) for layer in pool]
        self.slots = [layer.view(pages * 2 * PAGE_SIZE, self.kv_heads, self.head_dim) for layer in pool]

    def prefill(self, spans: Sequence[TokenSpan]) -> Attention:
        return CpuPrefillAttention(self, spans)

    def decode(self, tables: Pages, contexts: npt.NDArray[np.int64]) -> Attention:
        return CpuDecodeAttention(self, tables, contexts)

    def gather(self, layer: int, halves: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns keys and values, [rows, kv_heads, tokens, head_dim] each (strided). `halves` [2, rows, pages]."""
        _, rows, pages = halves.shape
        flat = self.halves[layer].index_select(0, halves.view(-1))
        both = flat.view(2, rows, pages * PAGE_SIZE, self.kv_heads, self.head_dim).transpose(2, 3)
        return both[0], both[1]

    def write(
        self, layer: int, slots: tuple[torch.Tensor, torch.Tensor], keys: torch.Tensor, values: torch.Tensor
    ) -> None:
        self.slots[layer].index_copy_(0, slots[0], keys)
        self.slots[layer].index_copy_(0, slots[1], values)

    def clear(self, page: int, from_slot: int) -> None:
        self.pool[:, page, :, from_slot:] = 0


def halves_of(tables: Pages) -> torch.Tensor:
    """Returns where each page's keys and its values lie among the halves: [..., pages] -> [2, ..., pages]."""
    halves = np.empty((2, *tables.shape), np.int64)
    np.multiply(tables, 2, out=halves[0], casting="unsafe")
    np.add(halves[0], 1, out=halves[1])
    return torch.from_numpy(halves)


def slots_of(pages: Pages, positions: npt.NDArray[np.int64]) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns where each token's key and its value lie among the slots. `pages` [tokens]: the tokens' pages."""
    keys = pages.astype(np.int64) * (2 * PAGE_SIZE) + positions % PAGE_SIZE
    return torch.from_numpy(keys), torch.from_numpy(keys + PAGE_SIZE)


class CpuPrefillAttention:
    """An `Attention` over spans of prompts."""

    def __init__(self, backend: CpuPagedAttention, spans: Sequence[TokenSpan]) -> None:
        self._backend = backend
        self._chunks: list[SpanAttention] = []
        pages, positions = [], []
        row = 0
        for span in spans:
            at = np.arange(span.start, span.end)
            positions.append(at)
            pages.append(np.asarray(span.table)[at // PAGE_SIZE])
            if span.end % PAGE_SIZE:
                backend.clear(int(span.table[span.end // PAGE_SIZE]), span.end % PAGE_SIZE)
            self._chunks.append(SpanAttention(backend, span, row))
            row += span.end - span.start
        self._slots = slots_of(np.concatenate(pages), np.concatenate(positions))

    def __call__(self, layer: int, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        self._backend.write(layer, self._slots, keys, values)
        out = torch.empty_like(queries)
        for chunk in self._chunks:
            chunk.attend(layer, queries, keys, values, out)
        return out.flatten(1)


class SpanAttention:
    """The attention of one span of a prefill batch, whose first token is row `row`."""

    def __init__(self, backend: CpuPagedAttention, span: TokenSpan, row: int) -> None:
        self._backend = backend
        self._span = span
        self._rows = slice(row, row + span.end - span.start)
        self._views: dict[int | None, tuple[torch.Tensor, torch.Tensor]] = {}

    def attend(
        self, layer: int, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, out: torch.Tensor
    ) -> None:
        """Fills the span's rows of `out`, [tokens, heads, head_dim]."""
        rows, window = self._rows, self._backend.windows[layer]
        q = queries[rows].transpose(0, 1)[None]
        mask: torch.Tensor | None = None
        if self._span.start == 0 and (window is None or self._span.end <= window):
            # These tokens attend to themselves only.
            k, v = keys[rows].transpose(0, 1)[None], values[rows].transpose(0, 1)[None]
        else:
            halves, mask = self._view(window, q.dtype)
            k, v = self._backend.gather(layer, halves)
        grouped = k.shape[1] != q.shape[1]
        seen = scaled_dot_product_attention(q, k, v, mask, is_causal=mask is None, enable_gqa=grouped)
        out[rows] = seen[0].transpose(0, 1)

    def _view(self, window: int | None, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the pages to gather and the mask over them [tokens, gathered], the same for all layers of one
        window."""
        if window not in self._views:
            span = self._span
            first = 0 if window is None else max(0, span.start + 1 - window) // PAGE_SIZE
            last = pages_for(span.end)
            query = torch.arange(span.start, span.end)[:, None]
            key = torch.arange(first * PAGE_SIZE, last * PAGE_SIZE)[None]
            hidden = key > query
            if window is not None:
                hidden |= key <= query - window
            mask = torch.zeros(hidden.shape, dtype=dtype).masked_fill_(hidden, -torch.inf)
            self._views[window] = halves_of(np.asarray(span.table)[None, first:last]), mask
        return self._views[window]


class CpuDecodeAttention:
    """An `Attention` over one new token of each row."""

    def __init__(self, backend: CpuPagedAttention, tables: Pages, contexts: npt.NDArray[np.int64]) -> None:
        self._backend = backend
        rows = np.arange(len(contexts))
        pages = tables[rows, contexts // PAGE_SIZE]
        for page in pages[contexts % PAGE_SIZE == 0]:
            backend.clear(int(page), 0)
        self._slots = slots_of(pages, contexts)
        dtype = backend.pool.dtype
        self._groups = {
            window: [RowGroup(tables, contexts, window, which, dtype) for which in like_lengths(contexts, window)]
            for window in set(backend.windows)
        }

    def __call__(self, layer: int, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        backend = self._backend
        backend.write(layer, self._slots, keys, values)
        groups = self._groups[backend.windows[layer]]
        # Query heads that share a KV head count as several queries against it: [rows, kv_heads, group, head_dim].
        grouped = queries.view(len(queries), backend.kv_heads, -1, backend.head_dim)
        if len(groups) == 1:
            k, v = backend.gather(layer, groups[0].halves)
            return scaled_dot_product_attention(grouped, k, v, groups[0].mask).reshape(len(queries), -1)
        out = torch.empty_like(grouped)
        for group in groups:
            k, v = backend.gather(layer, group.halves)
            out[group.rows] = scaled_dot_product_attention(grouped[group.rows], k, v, group.mask)
        return out.reshape(len(queries), -1)


class RowGroup:
    """Rows of a decode batch whose attention is computed in one call."""

    def __init__(
        self,
        tables: Pages,
        contexts: npt.NDArray[np.int64],
        window: int | None,
        rows: npt.NDArray[np.int64],
        dtype: torch.dtype,
    ) -> None:
        contexts = contexts[rows]
        oldest = np.zeros_like(contexts) if window is None else np.maximum(contexts + 1 - window, 0)
        first = oldest // PAGE_SIZE
        width = int((contexts // PAGE_SIZE - first).max()) + 1
        if window is None:
            gathered = tables[rows, :width]
        else:
            # Beyond a row's own pages its last one is repeated, and masked.
            columns = np.minimum(first[:, None] + np.arange(width), (contexts // PAGE_SIZE)[:, None])
            gathered = tables[rows[:, None], columns]
        key = (first * PAGE_SIZE)[:, None] + np.arange(width * PAGE_SIZE)
        hidden = key > contexts[:, None]
        if window is not None:
            hidden |= key < oldest[:, None]
        self.rows = torch.from_numpy(rows)
        self.halves = halves_of(gathered)
        mask = np.where(hidden, np.float32(-np.inf), np.float32(0))
        self.mask = torch.from_numpy(mask).to(dtype)[:, None, None]


def like_lengths(contexts: npt.NDArray[np.int64], window: int | None) -> list[npt.NDArray[np.int64]]:
    """Splits the rows into groups, such that padding each group to its longest row wastes little."""
    pages = (contexts if window is None else np.minimum(contexts, window)) // PAGE_SIZE + 1
    longest = int(pages.max())
    if len(pages) * longest * PAGE_SIZE < SMALL_GROUP_TOKENS or len(pages) * longest < UNEVEN * pages.sum():
        return [np.arange(len(pages))]
    order = np.argsort(pages, kind="stable")
    lengths = pages[order]
    groups = []
    end = len(lengths)
    while end:
        begin = int(np.searchsorted(lengths[:end], lengths[end - 1] / UNEVEN))
        groups.append(order[begin:end])
        end = begin
    return groups
