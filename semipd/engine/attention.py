"""The door to attention kernels. A back end fills it for a device: `paged_cpu` here, FlashInfer on a GPU.

For each forward pass the model asks for one `Attention`, prepared once from block tables and lengths, and calls it
once a layer. Whatever is costly and the same for all layers (indices, masks, kernel plans) belongs into the preparing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

Pages = npt.NDArray[np.integer]
"""Page numbers of a sequence, in the order of its tokens."""


@dataclass(frozen=True, slots=True)
class TokenSpan:
    """Consecutive new tokens of one sequence: positions start to end - 1, whose pages are in `table`."""

    start: int
    end: int
    table: Pages


class Attention(Protocol):
    """One forward pass."""

    def __call__(self, layer: int, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        """Writes the new keys and values into the pool, and attends to everything before and including them.

        queries [tokens, heads, head_dim], keys and values [tokens, kv_heads, head_dim]; the answer is
        [tokens, heads · head_dim]. The tokens of a pass are in the order in which it was prepared.
        """
        ...


class AttentionBackend(Protocol):
    def prefill(self, spans: Sequence[TokenSpan]) -> Attention:
        """For new tokens of several sequences, span after span."""
        ...

    def decode(self, tables: Pages, contexts: npt.NDArray[np.int64]) -> Attention:
        """For one new token of each of several sequences.

        `contexts` [rows]: tokens in the pool before it, hence its position. `tables` [rows, pages]: each row's page
        numbers, padded with any page of the row's own.
        """
        ...


class JoinedAttention:
    """One Attention over the tokens of two: the first `count` are those of `first`, the others those of `rest`."""

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
