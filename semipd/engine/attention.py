"""The interface of attention kernels on a CPU; `paged_cpu` implements it.

For each forward pass the model asks for one `Attention`, which is prepared once from block tables and lengths, and
calls it once a layer. All that is costly and the same for all layers (indices, masks, kernel plans) belongs to the
preparation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

Pages = npt.NDArray[np.integer]
"""The page numbers of a sequence, in the order of its tokens."""


@dataclass(frozen=True, slots=True)
class TokenSpan:
    """Consecutive new tokens of one sequence: positions start to end - 1, whose pages are in `table`."""

    start: int
    end: int
    table: Pages


class Attention(Protocol):
    """The attention of one forward pass."""

    def __call__(self, layer: int, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        """Writes the new keys and values into the pool, and attends to everything before and including them.

        `queries` [tokens, heads, head_dim], `keys` and `values` [tokens, kv_heads, head_dim]. Returns
        [tokens, heads · head_dim]. The tokens of a pass are in the order in which it was prepared.
        """
        ...


class AttentionBackend(Protocol):
    """Prepares attention for forward passes."""

    def prefill(self, spans: Sequence[TokenSpan]) -> Attention:
        """Prepares a pass over new tokens of several sequences, span after span."""
        ...

    def decode(self, tables: Pages, contexts: npt.NDArray[np.int64]) -> Attention:
        """Prepares a pass over one new token of each of several sequences.

        `contexts` [rows]: tokens in the pool before the new one, hence its position. `tables` [rows, pages]: each row's
        page numbers, padded with any page of the row's own.
        """
        ...


class JoinedAttention:
    """An `Attention` over the tokens of two others: the first `count` are those of `first`, the others those of
    `rest`."""

    def __init__(self, count: int, first: Attention, rest: Attention) -> None:
        self._count, self._first, self._rest = count, first, rest

    def __call__(self, layer: int, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        n = self._count
        return torch.cat(
            (
                self._first(layer, queries[:n], keys[:n], values[:n]),
                self._rest(layer, queries[n:], keys[n:], values[n:]),
            )
        )
