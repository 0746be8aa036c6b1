"""The CPU's work for the device: launch arguments, and items of attention."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from semipd.engine.cuda.kernels import decode_attention
from semipd.engine.cuda.launch_args import DEPTH, LaunchArgs

# --- commands -------------------------------------------------------------------------------------------------------


@pytest.fixture
def command(device: torch.device) -> LaunchArgs:
    return LaunchArgs({"a": ((3,), np.int32), "b": ((2, 3), np.float32), "c": ((2, 4), np.int32)}, device)


def test_a_command_arrives_under_the_names_and_in_the_shapes_that_it_was_filled_in(command: LaunchArgs) -> None:
    say = command.next()
    say["a"][:] = [1, -2, 3]
    say["b"][1, 2] = 0.25
    say["c"][1, :] = 9
    command.send()
    assert command.device["a"].tolist() == [1, -2, 3]
    assert command.device["b"].tolist() == [[0, 0, 0], [0, 0, 0.25]]
    assert command.device["c"].tolist() == [[0] * 4, [9] * 4]


def test_addresses_on_the_device_stay_the_same_and_are_aligned(command: LaunchArgs) -> None:
    before = {name: tensor.data_ptr() for name, tensor in command.device.items()}
    for _ in range(DEPTH + 1):
        command.next()["a"][:] = 5
        command.send()
    assert {name: tensor.data_ptr() for name, tensor in command.device.items()} == before
    first = min(before.values())
    assert all((address - first) % 16 == 0 for address in before.values())


def test_of_the_last_field_only_what_is_asked_for_is_sent(command: LaunchArgs) -> None:
    say = command.next()
    say["a"][:], say["c"][:] = 7, 8
    command.send(of_last=5)
    assert command.device["a"].tolist() == [7, 7, 7]
    assert command.device["c"].flatten().tolist() == [8] * 5 + [0] * 3


def test_what_is_on_its_way_is_not_overwritten_by_the_next_commands(command: LaunchArgs) -> None:
    sent = command.next()
    sent["a"][:] = 1
    for turn in range(DEPTH - 1):
        command.next()["a"][:] = 2 + turn
        assert sent["a"].tolist() == [1, 1, 1]


# --- items of attention ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("window", [1, 64, 100, 5000])
def test_with_a_window_items_cover_what_a_row_sees_and_nothing_before(window: int) -> None:
    contexts = np.array([0, 63, 64, 99, 100, 1000, 4999, 5000, 20_000])
    items, begins = decode_attention.cut(contexts, window, 2, 40)
    for row, context in enumerate(contexts.tolist()):
        mine = items[:, begins[row] : begins[row + 1]]
        assert (mine[0] == row).all()
        assert mine[1, 0] == max(0, context + 1 - window)
        assert mine[2, -1] == context + 1
        assert (mine[1, 1:] == mine[2, :-1]).all()
        assert (mine[1] < mine[2]).all()


def test_a_rows_items_are_of_one_length_but_the_last() -> None:
    items, begins = decode_attention.cut(np.array([9999, 50, 700]), None, 8, 792)
    for row in range(3):
        lengths = np.diff(items[1:, begins[row] : begins[row + 1]], axis=0)[0]
        assert len(set(lengths[:-1].tolist())) <= 1
        assert lengths[-1] <= lengths[0]
        assert (lengths[:-1] % decode_attention.GRAIN == 0).all()


def test_short_rows_are_not_cut_and_a_long_one_alone_is_cut_for_the_whole_device() -> None:
    short, _ = decode_attention.cut(np.full(64, 30), None, 8, 792)
    assert short.shape[1] == 64
    wanted = decode_attention.wanted_items(8, 792)
    long, _ = decode_attention.cut(np.array([100_000]), None, 8, 792)
    assert wanted / 2 < long.shape[1] <= wanted
