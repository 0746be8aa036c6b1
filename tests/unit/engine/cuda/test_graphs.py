"""Graphs of passes: which are captured in what order, and which bucket a pass takes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from functools import partial
from itertools import pairwise
from typing import cast

import pytest
import torch

from semipd.engine.cuda import graphs as cuda_graphs
from semipd.engine.cuda.decode import BUCKETS, buckets_for
from semipd.engine.cuda.graphs import CLEARLY, CLEARLY_MS, BucketGraphs, GraphCapture, choose_buckets
from semipd.engine.cuda.streams import Streams

# --- buckets and the order of capture -------------------------------------------------------------------------------


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


class Clock:
    """The device's clock: work passes time, and an event is the moment of its record."""

    now_ms = 0.0

    def event(self, *, enable_timing: bool) -> Event:
        assert enable_timing
        return Event(self)


class Event:
    def __init__(self, clock: Clock) -> None:
        self._clock, self._at_ms = clock, 0.0

    def record(self) -> None:
        self._at_ms = self._clock.now_ms

    def elapsed_time(self, later: Event) -> float:
        return later._at_ms - self._at_ms


class Recorded:
    """Stands in the place of a graph."""

    def __init__(self, work: Callable[[], None]) -> None:
        self.replay = work


@pytest.fixture
def launched() -> list[int]:
    return []


@pytest.fixture
def graphs(launched: list[int]) -> BucketGraphs:
    return BucketGraphs(cast(Streams, PlayedLanes()), [4, 1, 2, 16, 8], launched.append, lambda: None)


def test_a_pass_takes_the_smallest_bucket_that_holds_it(graphs: BucketGraphs) -> None:
    assert [graphs.bucket(size) for size in (1, 2, 3, 4, 9, 16, 17)] == [1, 2, 4, 4, 16, 16, None]
    assert graphs.least == 1


def test_graphs_on_all_sms_come_first_and_every_second_bucket_before_the_ones_between(graphs: BucketGraphs) -> None:
    assert graphs.missing()[:5] == [(16, 132), (4, 132), (1, 132), (8, 132), (2, 132)]
    assert [sms for _, sms in graphs.missing()[::5]] == [132, 64, 16]
    assert len(graphs.missing()) == graphs.total == 15


def test_what_is_not_captured_runs_launch_by_launch(graphs: BucketGraphs, launched: list[int]) -> None:
    graphs.run(8)
    assert launched == [8]
    assert graphs.captured == 0


def test_without_a_budget_nothing_is_captured(graphs: BucketGraphs, launched: list[int]) -> None:
    said: list[tuple[int, int]] = []
    GraphCapture([graphs]).run(0.0, lambda done, total: said.append((done, total)))
    assert launched == []
    assert said == []
    assert len(graphs.missing()) == 15


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(cuda_graphs, "record_graph", Recorded)
    monkeypatch.setattr(torch.cuda, "Event", clock.event)
    return clock


def test_a_kind_for_the_whole_device_comes_before_the_lanes_that_share_it(recorded: Clock) -> None:
    streams = PlayedLanes()
    order: list[tuple[str, int]] = []

    def kind(name: str, buckets: list[int], choices: list[int] | None = None) -> BucketGraphs:
        done = partial(order.append, (name, 0))
        return BucketGraphs(cast(Streams, streams), buckets, lambda bucket: order.append((name, bucket)), done, choices)

    rows, tokens = kind("rows", [1, 2]), kind("tokens", [64, 128], [132])
    capture = GraphCapture([rows, tokens])
    said: list[tuple[int, int]] = []
    capture.run(60.0, lambda done, total: said.append((done, total)))

    assert said == [(number, 8) for number in range(1, 9)]
    assert capture.captured == capture.total == 8
    assert (rows.captured, rows.total, tokens.captured, tokens.total) == (6, 6, 2, 2)
    before = list(dict.fromkeys(name for name, _ in order))
    assert before == ["rows", "tokens"]
    last_of_tokens = max(at for at, (name, _) in enumerate(order) if name == "tokens")
    assert [name for name, bucket in order[:last_of_tokens] if not bucket] == ["rows"] * 2 + ["tokens"] * 2
    assert [name for name, bucket in order[last_of_tokens:] if not bucket] == ["rows"] * 4, "the green contexts"
    assert order[0] == ("rows", 0), "nothing is launched before a command that says nothing"
    assert streams.current == streams.all


def test_a_graph_is_ready_on_the_lane_that_it_was_captured_on(recorded: Clock) -> None:
    streams = PlayedLanes()
    graphs = BucketGraphs(cast(Streams, streams), [64, 128], lambda _: None, lambda: None, [132])
    graphs.capture_one(64, 132)
    graphs.capture_one(64, 16)
    assert (graphs.is_captured(64), graphs.is_captured(128), graphs.captured) == (True, False, 1)
    streams.use(16)
    assert not graphs.is_captured(64)


# --- the choice by time ---------------------------------------------------------------------------------------------

SLOW = {1: 6.0, 2: 6.1, 4: 9.0, 8: 6.5, 16: 7.0}
"""Milliseconds of a pass by bucket: 8 rows take less than 4."""


def in_time(clock: Clock, times_ms: Mapping[int, float], streams: PlayedLanes | None = None) -> BucketGraphs:
    def work(bucket: int) -> None:
        clock.now_ms += times_ms[bucket]

    return BucketGraphs(cast(Streams, streams or PlayedLanes()), list(times_ms), work, lambda: None)


def test_a_bucket_that_is_slower_than_a_larger_one_is_passed_over(recorded: Clock) -> None:
    graphs = in_time(recorded, SLOW)
    GraphCapture([graphs]).run(60.0)
    assert [graphs.bucket(size) for size in (1, 2, 3, 4, 5, 8, 9, 17)] == [1, 2, 8, 8, 8, 8, 16, None]


def test_a_bucket_is_passed_over_only_for_one_that_is_captured(recorded: Clock) -> None:
    graphs = in_time(recorded, SLOW)
    assert graphs.bucket(4) == 4
    graphs.capture_one(4, 132)
    assert graphs.bucket(4) == 4
    graphs.capture_one(8, 64)
    assert graphs.bucket(4) == 4, "on another lane nothing is timed"
    graphs.capture_one(16, 132)
    assert (graphs.bucket(4), graphs.bucket(5)) == (16, 8), "of 8 nothing is known"
    graphs.capture_one(8, 132)
    assert (graphs.bucket(4), graphs.bucket(5)) == (8, 8)


def test_what_is_passed_over_is_not_captured_for_the_other_lanes(recorded: Clock) -> None:
    streams = PlayedLanes()
    graphs = in_time(recorded, SLOW, streams)
    said: list[tuple[int, int]] = []
    capture = GraphCapture([graphs])
    capture.run(60.0, lambda done, total: said.append((done, total)))
    assert [done for done, _ in said] == list(range(1, 14))
    assert {total for _, total in said} == {15, 13}
    assert capture.captured == capture.total == 13
    assert graphs.missing() == []
    for sms in (16, 64, 132):
        streams.use(sms)
        assert [bucket for bucket in SLOW if graphs.is_captured(bucket)] == [1, 2, *([4] if sms == 132 else []), 8, 16]


def test_a_bucket_that_another_process_disturbed_is_timed_again(recorded: Clock) -> None:
    launched: list[int] = []

    def work(bucket: int) -> None:
        launched.append(bucket)
        disturbed = bucket == 2 and launched.count(2) <= 1 + 2 * (cuda_graphs.ROUNDS + 1)  # when 2 and 1 are captured
        recorded.now_ms += bucket + (10.0 if disturbed else 0.0)

    graphs = BucketGraphs(cast(Streams, PlayedLanes()), [1, 2, 4], work, lambda: None, [132])
    GraphCapture([graphs]).run(60.0)
    assert [graphs.bucket(size) for size in (1, 2, 3)] == [1, 2, 4]


def test_a_larger_bucket_that_another_process_disturbed_is_timed_again_beside_a_smaller_one(recorded: Clock) -> None:
    launched: list[int] = []

    def work(bucket: int) -> None:
        launched.append(bucket)
        disturbed = bucket == 4 and launched.count(4) <= 1 + cuda_graphs.ROUNDS + 1
        recorded.now_ms += {2: 9.0, 4: 6.0}[bucket] + (10.0 if disturbed else 0.0)

    graphs = BucketGraphs(cast(Streams, PlayedLanes()), [2, 4], work, lambda: None, [132])
    GraphCapture([graphs]).run(60.0)
    assert graphs.bucket(1) == 4
    assert graphs.useful == [4]


def choose_of(*times_ms: float | None) -> list[int]:
    """The times of buckets 1, 2, 3, ..."""
    known = {bucket: ms for bucket, ms in enumerate(times_ms, 1) if ms is not None}
    return choose_buckets(range(1, len(times_ms) + 1), known)


def test_without_times_every_bucket_is_itself() -> None:
    assert choose_of(None, None) == [1, 2]
    assert choose_of(9.0, None) == [1, 2]
    assert choose_of(None, 9.0) == [1, 2]


def test_less_than_clearly_faster_is_not_faster() -> None:
    assert choose_of(10.0, 10.0) == [1, 2]
    assert choose_of(10.0, 10.0 * (1 - CLEARLY) + 0.01) == [1, 2]
    assert choose_of(10.0, 10.0 * (1 - CLEARLY) - 0.01) == [2, 2]
    assert choose_of(0.1, 0.1 - CLEARLY_MS + 0.001) == [1, 2], "half the time, and nothing that anybody feels"
    assert choose_of(0.1, 0.1 - CLEARLY_MS - 0.001) == [2, 2]


def test_one_that_is_not_timed_takes_nobodys_place() -> None:
    assert choose_of(10.0, None, 5.0) == [3, 2, 3]


def test_what_is_taken_instead_is_faster_and_never_clearly_slower_than_what_is_larger() -> None:
    # 2 is not clearly slower than 3, and so stays itself; 1 is clearly slower than 3, and takes 2, which is smaller.
    assert choose_of(10.2, 10.0, 9.8) == [2, 2, 3]
    assert choose_of(8.0, 15.0, 16.0, 9.0, 12.0, 11.0, 13.0) == [1, 4, 4, 4, 6, 6, 7]
