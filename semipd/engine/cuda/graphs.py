"""CUDA graphs of passes: by bucket of rows or tokens, and by lane. What is not captured runs launch by launch."""

from __future__ import annotations

import bisect
import gc
import time
from collections.abc import Callable, Mapping, Sequence

import torch

from semipd.engine.cuda.streams import Streams

CaptureProgress = Callable[[int, int], None]
"""Told of graphs captured and graphs in all."""

ROUNDS, MORE_ROUNDS = 3, 6
"""Of replays by which graphs are timed, in which all have their turn: the least of each counts. The other worker
captures and times at the same moment, and what it disturbs it disturbs of all; more before a bucket is passed over."""
CLEARLY, CLEARLY_MS = 0.03, 0.05
"""A larger bucket is taken where it saves that part of the time and so many ms: less than either is noise."""


class BucketGraphs:
    """`work(bucket)` launches a pass of that size on the current stream, reading and writing fixed addresses alone."""

    def __init__(
        self,
        streams: Streams,
        buckets: Sequence[int],
        work: Callable[[int], None],
        send_padding: Callable[[], None],
        choices: Sequence[int] | None = None,
    ) -> None:
        """`send_padding` sends a command of padding alone: what is launched to warm up and to capture touches no
        sequence. `choices`: SMs of the streams that they are for; None: of all streams."""
        self._streams = streams
        self._buckets = sorted(buckets)
        self._chosen = self._buckets
        self._times_ms: dict[int, float] = {}
        """Of graphs on the whole device."""
        self._work = work
        self._send_padding = send_padding
        self._choices = sorted(streams.choices() if choices is None else choices, reverse=True)
        self._graphs: dict[tuple[int, int], torch.cuda.CUDAGraph] = {}
        self._warm: set[tuple[int, int]] = set()

    def bucket(self, size: int) -> int | None:
        """Of those that hold so many, the smallest that no larger one is clearly faster than; None: none holds them.

        Products of some sizes are slow: which ones is a matter of the GPU, its libraries and the model. So it is by
        times on the whole device, for all streams. What is not captured there counts as fast.
        """
        at = bisect.bisect_left(self._buckets, size)
        return self._chosen[at] if at < len(self._buckets) else None

    @property
    def useful(self) -> list[int]:
        """Those that passes run in, as it is by now."""
        return sorted(set(self._chosen))

    @property
    def least(self) -> int:
        """The smallest bucket."""
        return self._buckets[0]

    def ready(self, bucket: int) -> bool:
        """Whether it is captured for the current lane."""
        return (bucket, self._streams.current) in self._graphs

    def run(self, bucket: int) -> None:
        """On the current lane, in its stream."""
        graph = self._graphs.get((bucket, self._streams.current))
        if graph is None:
            self._work(bucket)
        else:
            graph.replay()

    @property
    def total(self) -> int:
        """Less as buckets turn out to be slow: on the other streams they are not wanted."""
        return len(self._graphs.keys() | set(self._wanted()))

    @property
    def captured(self) -> int:
        return len(self._graphs)

    def missing(self) -> list[tuple[int, int]]:
        """(bucket, SMs): first those on most SMs, every second bucket before the ones between."""
        return [each for each in self._wanted() if each not in self._graphs]

    def _wanted(self) -> list[tuple[int, int]]:
        order, chosen = self._buckets[::-1][::2] + self._buckets[::-1][1::2], set(self._chosen)
        return [(b, sms) for sms in self._choices for b in order if sms == self._streams.all or b in chosen]

    def capture_one(self, bucket: int, sms: int) -> None:
        """That one, where it is not captured and is one of these; on the whole device it is timed, too. No other work
        of this process may be on the device."""
        if sms not in self._choices or (bucket, sms) in self._graphs:
            return
        self._send_padding()
        back = self._streams.current
        self._streams.use(sms)
        with self._streams.on():
            # Kernels load and libraries take their workspaces with the first launch, which a capture forbids.
            for kind in ((bucket, self._streams.all), (0, sms)):
                if kind not in self._warm:
                    self._work(bucket)
                    self._warm.add(kind)
            self._streams.stream.synchronize()
            self._graphs[bucket, sms] = record_graph(lambda: self._work(bucket))
            if sms == self._streams.all:
                self._time([bucket, *[b for b in sorted(self._times_ms) if b > bucket][:1]], ROUNDS)
                self._choose()
        self._streams.use(back)

    def _choose(self) -> None:
        """By the times as they are now. What would be passed over from now on is timed once more, beside what is
        faster."""
        for bucket, chosen in zip(self._buckets, choose_buckets(self._buckets, self._times_ms), strict=True):
            if chosen != bucket and bucket in self._chosen:
                faster = min((b for b in self._times_ms if b > bucket), key=self._times_ms.__getitem__)
                self._time([bucket, faster], MORE_ROUNDS)
        self._chosen = choose_buckets(self._buckets, self._times_ms)

    def _time(self, buckets: Sequence[int], rounds: int) -> None:
        """Their graphs on the whole device, which is the current lane; the least ever measured counts."""
        found = replays_ms(
            [self._graphs[bucket, self._streams.all] for bucket in buckets], rounds, self._streams.stream
        )
        for bucket, ms in zip(buckets, found, strict=True):
            self._times_ms[bucket] = min(ms, self._times_ms.get(bucket, ms))


class GraphCapture:
    """The capture of several kinds of passes, in one order: what runs on the whole device first, kind after kind."""

    def __init__(self, kinds: Sequence[BucketGraphs]) -> None:
        self._kinds = kinds

    @property
    def total(self) -> int:
        return sum(graphs.total for graphs in self._kinds)

    @property
    def captured(self) -> int:
        return sum(graphs.captured for graphs in self._kinds)

    def run(self, budget_s: float, progress: CaptureProgress = lambda done, total: None) -> None:
        """As many as fit into so many seconds. No other work of this process may be on the device."""
        until = time.monotonic() + budget_s
        while time.monotonic() < until:
            missing = [(graphs, bucket, sms) for graphs in self._kinds for bucket, sms in graphs.missing()]
            if not missing:
                return
            graphs, bucket, sms = max(missing, key=lambda one: one[2])  # the first of those on most SMs
            graphs.capture_one(bucket, sms)
            progress(self.captured, self.total)


def choose_buckets(buckets: Sequence[int], times_ms: Mapping[int, float]) -> list[int]:
    """For each bucket, in ascending order, the one to run in its place: itself, unless it is clearly slower than a
    larger one; then the next larger that is timed and stays itself, which is faster, too."""
    chosen: list[int] = []
    least, instead = float("inf"), buckets[-1]
    for bucket in reversed(buckets):
        own = times_ms.get(bucket)
        if own is None:
            chosen.append(bucket)
            continue
        if least > own - max(CLEARLY * own, CLEARLY_MS):
            instead = bucket
        chosen.append(instead)
        least = min(least, own)
    return chosen[::-1]


def replays_ms(graphs: Sequence[torch.cuda.CUDAGraph], rounds: int, stream: torch.cuda.Stream) -> list[float]:
    """How long each takes the device at least, on the current stream, which is `stream`."""
    for graph in graphs:
        graph.replay()  # loads what the first launch of a graph does, and ends a pause of the device
    begin = torch.cuda.Event(enable_timing=True)
    begin.record()
    ends: list[list[torch.cuda.Event]] = [[] for _ in graphs]
    for _ in range(rounds):
        for graph, its in zip(graphs, ends, strict=True):
            graph.replay()
            its.append(torch.cuda.Event(enable_timing=True))
            its[-1].record()
    stream.synchronize()
    least = [float("inf")] * len(graphs)
    for number in range(rounds):
        for at, its in enumerate(ends):
            least[at] = min(least[at], begin.elapsed_time(its[number]))
            begin = its[number]
    return least


def record_graph(work: Callable[[], None]) -> torch.cuda.CUDAGraph:
    """What `work` launches on the current stream, none of which is run."""
    enabled = gc.isenabled()
    gc.disable()  # a collection while a stream is captured could free device memory, which ends the capture
    try:
        graph = torch.cuda.CUDAGraph()
        graph.capture_begin(capture_error_mode="thread_local")
        try:
            work()
        finally:
            graph.capture_end()
    finally:
        if enabled:
            gc.enable()
    return graph
