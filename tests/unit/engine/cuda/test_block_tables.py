"""Block tables on the device: what is put is there after `send`, and the last word counts."""

from __future__ import annotations

import numpy as np
import torch

from semipd.engine.cuda.block_tables import CHANGES, BlockTables


def test_pages_and_tokens_are_there_after_send_and_not_before(device: torch.device) -> None:
    tables = BlockTables(3, 5, device)
    tables.put_pages(1, 2, [7, 8])
    tables.put_token(2, 99)
    assert not tables.pages.any()
    assert not tables.fed.any()
    tables.send()
    assert tables.pages.tolist() == [[0] * 5, [0, 0, 7, 8, 0], [0] * 5]
    assert tables.fed.tolist() == [0, 0, 99]


def test_of_two_words_for_one_place_the_later_counts(device: torch.device) -> None:
    tables = BlockTables(2, 4, device)
    tables.put_pages(0, 0, [1, 2, 3, 4])
    tables.put_token(0, 5)
    tables.put_pages(0, 0, [6])
    tables.put_token(0, 7)
    tables.send()
    assert tables.pages[0].tolist() == [6, 2, 3, 4]
    assert tables.fed.tolist() == [7, 0]


def test_more_changes_than_a_command_carries(device: torch.device) -> None:
    width = CHANGES // 2 + 3
    tables = BlockTables(3, width, device)
    for slot in range(3):
        tables.put_pages(slot, 0, np.arange(width) + slot)
    tables.send()
    tables.send()
    expected = torch.arange(width, dtype=torch.int32) + torch.arange(3, dtype=torch.int32)[:, None]
    assert torch.equal(tables.pages.cpu(), expected)


def test_warming_changes_nothing(device: torch.device) -> None:
    tables = BlockTables(2, 4, device)
    tables.put_pages(1, 0, [3])
    tables.send()
    tables.warm()
    assert tables.pages.tolist() == [[0] * 4, [3, 0, 0, 0]]
