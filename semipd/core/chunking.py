"""Cuts a prefill batch into pieces for the decode steps that take it along (mixed batches).

Both the decode worker and the simulator cut with this function.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple


class ChunkPiece(NamedTuple):
    """All of a chunk, or a part of it that one step computes."""

    chunk: int
    """The chunk's place in the batch."""
    start: int
    """Tokens of the chunk before the piece."""
    tokens: int


def split_chunks(lengths: Sequence[int], tokens: int, prompts: int) -> Iterator[list[ChunkPiece]]:
    """Yields the pieces of each step, in order.

    `lengths`: tokens of each chunk. A step takes at most `tokens` tokens and `prompts` pieces, and at most one piece
    of each chunk. A chunk of no tokens has no piece.
    """
    pieces: list[ChunkPiece] = []
    left = tokens
    for index, length in enumerate(lengths):
        start = 0
        while start < length:
            if left == 0 or len(pieces) == prompts:
                yield pieces
                pieces, left = [], tokens
            taken = min(left, length - start)
            pieces.append(ChunkPiece(index, start, taken))
            start, left = start + taken, left - taken
    if pieces:
        yield pieces
