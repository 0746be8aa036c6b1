"""Cutting a prefill batch into pieces for steps: each step is as full as its limits allow."""

from __future__ import annotations

import pytest

from semipd.core.chunking import split_chunks


@pytest.mark.parametrize(
    ("lengths", "expected"),
    [
        ([], []),
        ([0], []),
        ([7], [[(0, 0, 7)]]),
        ([20], [[(0, 0, 10)], [(0, 10, 10)]]),
        ([6, 9], [[(0, 0, 6), (1, 0, 4)], [(1, 4, 5)]]),
        ([10, 1], [[(0, 0, 10)], [(1, 0, 1)]]),
        ([1, 1, 1, 1, 8], [[(0, 0, 1), (1, 0, 1), (2, 0, 1)], [(3, 0, 1), (4, 0, 8)]]),
    ],
)
def test_pieces_of_steps_of_ten_tokens_and_three_prompts(
    lengths: list[int], expected: list[list[tuple[int, int, int]]]
) -> None:
    assert list(split_chunks(lengths, tokens=10, prompts=3)) == expected
