"""What the CPU prepares for the device: commands, buckets, the order of capture, and items of attention."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import cast

import numpy as np
import pytest
import torch

from semipd.engine.cuda import graphs as cuda_graphs
from semipd.engine.cuda.command import DEPTH, Command
from semipd.engine.cuda.decode import BUCKETS, buckets_for
from semipd.engine.cuda.graphs import Capture, Graphs
from semipd.engine.cuda.kernels import decode_attention
from semipd.engine.cuda.lanes import Lanes

# --- commands -------------------------------------------------------------------------------------------------------


@pytest.fixture
def command(device: torch.device) -> Command:
    return Command({"a": ((3,), np.int32), "b": ((2, 3), np.float32), "c": ((2, 4), np.int32)}, device)


def test_a_command_arrives_under_the_names_and_in_the_shapes_that_it_was_filled_in(command: Command) -> None:
    say = command.next()
    say["a"][:] = [1, -2, 3]
    say["b"][1, 2] = 0.25
    say["c"][1, :] = 9
    command.send()
    assert command.device["a"].tolist() == [1, -2, 3]
    assert command.device["b"].tolist() == [[0, 0, 0], [0, 0, 0.25]]
    assert command.device["c"].tolist() == [[0] * 4, [9] * 4]


def test_addresses_on_the_device_stay_the_same_and_are_aligned(command: Command) -> None:
    before = {name: tensor.data_ptr() for name, tensor in command.device.items()}
    for _ in range(DEPTH + 1):
        command.next()["a"][:] = 5
        command.send()
    assert {name: tensor.data_ptr() for name, tensor in command.device.items()} == before
    first = min(before.values())
    assert all((address - first) % 16 == 0 for address in before.values())


def test_of_the_last_field_only_what_is_asked_for_is_sent(command: Command) -> None:
    say = command.next()
    say["a"][:], say["c"][:] = 7, 8
    command.send(of_last=5)
    assert command.device["a"].tolist() == [7, 7, 7]
    assert command.device["c"].flatten().tolist() == [8] * 5 + [0] * 3


def test_what_is_on_its_way_is_not_overwritten_by_the_next_commands(command: Command) -> None:
    sent = command.next()
    sent["a"][:] = 1
    for turn in range(DEPTH - 1):
        command.next()["a"][:] = 2 + turn
        assert sent["a"].tolist() == [1, 1, 1]


# --- buckets and graphs ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("most", [1, 2, 3, 64, 65, 512, 513, 1000, 4096])
def test_buckets_reach_as_far_as_the_batch_and_never_pad_it_to_more_than_twice(most: int) -> None:
    buckets = buckets_for(most)
    assert buckets[0] == 1
    assert buckets[-1] == most
    assert all(a < b <= 2 * a for a, b in pairwise(buckets))


def test_a_batch_of_usual_size_has_the_usual_buckets() -> None:
    assert tuple(buckets_for(512)) == BUCKETS


class PlayedLanes:
    """One place that work goes to, whose name changes."""

    all = 132

    def __init__(self) -> None:
        self.current = self.all
        self.stream = self

    def choices(self) -> tuple[int, ...]:
        return (16, 64, 132)

    def use(self, sms: int) -> None:
        self.current = sms

    def on(self) -> contextlib.nullcontext[None]:
        return contextlib.nullcontext()

    def synchronize(self) -> None: ...


class Recorded:
    """In the place of a graph."""

    def __init__(self, work: Callable[[], None]) -> None:
        self.replay = work


@pytest.fixture
def launched() -> list[int]:
    return []


@pytest.fixture
def graphs(launched: list[int]) -> Graphs:
    return Graphs(cast(Lanes, PlayedLanes()), [4, 1, 2, 16, 8], launched.append, lambda: None)


def test_a_pass_takes_the_smallest_bucket_that_holds_it(graphs: Graphs) -> None:
    assert [graphs.bucket(size) for size in (1, 2, 3, 4, 9, 16, 17)] == [1, 2, 4, 4, 16, 16, None]
    assert graphs.least == 1


def test_graphs_on_all_sms_come_first_and_every_second_bucket_before_the_ones_between(graphs: Graphs) -> None:
    assert graphs.missing()[:5] == [(16, 132), (4, 132), (1, 132), (8, 132), (2, 132)]
    assert [sms for _, sms in graphs.missing()[::5]] == [132, 64, 16]
    assert len(graphs.missing()) == graphs.total == 15


def test_what_is_not_captured_runs_launch_by_launch(graphs: Graphs, launched: list[int]) -> None:
    graphs.run(8)
    assert launched == [8]
    assert graphs.captured == 0


def test_without_a_budget_nothing_is_captured(graphs: Graphs, launched: list[int]) -> None:
    said: list[tuple[int, int]] = []
    Capture([graphs]).run(0.0, lambda done, total: said.append((done, total)))
    assert launched == said == []
    assert len(graphs.missing()) == 15


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_graphs, "record", Recorded)


def test_a_kind_for_the_whole_device_comes_before_the_lanes_that_share_it(recorded: None) -> None:
    lanes = PlayedLanes()
    order: list[tuple[str, int]] = []

    def kind(name: str, buckets: list[int], choices: list[int] | None = None) -> Graphs:
        done = partial(order.append, (name, 0))
        return Graphs(cast(Lanes, lanes), buckets, lambda bucket: order.append((name, bucket)), done, choices)

    rows, tokens = kind("rows", [1, 2]), kind("tokens", [64, 128], [132])
    capture = Capture([rows, tokens])
    said: list[tuple[int, int]] = []
    capture.run(60.0, lambda done, total: said.append((done, total)))

    assert said == [(number, 8) for number in range(1, 9)]
    assert capture.captured == capture.total == 8
    assert (rows.captured, rows.total, tokens.captured, tokens.total) == (6, 6, 2, 2)
    before = list(dict.fromkeys(name for name, _ in order))
    assert before == ["rows", "tokens"]
    last_of_tokens = max(at for at, (name, _) in enumerate(order) if name == "tokens")
    assert [name for name, bucket in order[:last_of_tokens] if not bucket] == ["rows"] * 2 + ["tokens"] * 2
    assert [name for name, bucket in order[last_of_tokens:] if not bucket] == ["rows"] * 4, "the other lanes"
    assert order[0] == ("rows", 0), "nothing is launched before a command that says nothing"
    assert lanes.current == lanes.all


def test_a_graph_is_ready_on_the_lane_that_it_was_captured_on(recorded: None) -> None:
    lanes = PlayedLanes()
    graphs = Graphs(cast(Lanes, lanes), [64, 128], lambda _: None, lambda: None, [132])
    graphs.capture_one(64, 132)
    graphs.capture_one(64, 16)
    assert (graphs.ready(64), graphs.ready(128), graphs.captured) == (True, False, 1)
    lanes.use(16)
    assert not graphs.ready(64)


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
