"""The hash of weights: it knows every bit, wherever they are, and is told in order."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from semipd.memory.hashing import content_hash, dummy_hash
from semipd.memory.tensors import lay_out


@pytest.mark.parametrize(
    "other",
    [
        {"a": torch.ones(2, 3), "c": torch.zeros(4)},
        {"a": torch.ones(3, 2), "b": torch.zeros(4)},
        {"a": torch.ones(2, 3), "b": torch.zeros(4, dtype=torch.int32)},
        {"a": torch.ones(2, 3), "b": torch.tensor([0.0, 0.0, 0.0, 1e-30])},
    ],
    ids=["name", "shape", "type", "one number"],
)
def test_it_knows(other: dict[str, torch.Tensor]) -> None:
    weights = {"a": torch.ones(2, 3), "b": torch.zeros(4)}
    assert content_hash(weights) == content_hash({name: tensor.clone() for name, tensor in weights.items()})
    assert content_hash(weights) != content_hash(other)


def test_it_tells_how_far_it_is() -> None:
    told: list[tuple[int, int]] = []
    content_hash({"a": torch.ones(2, 3), "b": torch.zeros(4)}, lambda done, total: told.append((done, total)))
    assert told == [(24, 40), (40, 40)]


def test_bytes_that_come_in_pieces_are_the_same_bytes() -> None:
    def pieces(tensor: torch.Tensor) -> Iterator[memoryview]:
        whole = tensor.view(-1).view(torch.uint8).numpy().data
        for start in range(0, len(whole), 7):
            yield whole[start : start + 7]

    weights = {"a": torch.randn(5, 5), "b": torch.randn(9).bfloat16()}
    assert content_hash(weights, fetch=pieces) == content_hash(weights)


def test_dummy_weights_are_known_by_what_they_follow_from() -> None:
    entries, _ = lay_out([("a", (2, 3), "bfloat16"), ("b", (4,), "bfloat16")])
    hashes = {
        dummy_hash(entries, 0),
        dummy_hash(entries, 1),
        dummy_hash(entries[:1], 0),
        dummy_hash([entries[0], replace(entries[1], dtype="float16")], 0),
        dummy_hash([entries[0], replace(entries[1], shape=(2, 2))], 0),
    }
    assert len(hashes) == 5
    assert dummy_hash(entries, 0) in hashes
