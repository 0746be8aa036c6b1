"""CUDA graphs of passes, by bucket of rows or tokens and by number of SMs.

A pass that is not captured is launched kernel by kernel.
"""

from __future__ import annotations

import bisect
import gc
import time
from collections.abc import Callable, Mapping, Sequence

import torch

from semipd.engine.cuda.streams import Streams

CaptureProgress = Callable[[int, int], None]
"""A function that is told the number of graphs captured and the number in all."""

ROUNDS, MORE_ROUNDS = 3, 6
"""The numbers of rounds in which graphs are timed; the least time of each counts. All graphs are replayed in each
round, because the other worker captures and times at the same moment, and so disturbs all of them alike. Before a
bucket is skipped, it is timed again with MORE_ROUNDS."""
CLEARLY, CLEARLY_MS = 0.03, 0.05
"""A larger bucket is used where it saves this part of the time, and this many ms. Less than either is noise."""


class BucketGraphs:
    """The graphs of one kind of pass.

    `work(bucket)` launches a pass of that size on the current stream. It reads and writes fixed addresses only.
    """

    def __init__(
        self,
        streams: Streams,
        buckets: Sequence[int],
        work: Callable[[int], None],
        send_padding: Callable[[], None],
        choices: Sequence[int] | None = None,
    ) -> None:
        """Makes no graph yet.

        `send_padding` sends launch arguments of padding only, so that what is launched to warm up and to capture
        touches no sequence. `choices`: the numbers of SMs that there are graphs for; None: all that `streams` has.
        """
        self._streams = streams
        self._buckets = sorted(buckets)
        self._chosen = self._buckets
        self._times_ms: dict[int, float] = {}
        """The times of graphs on the whole device, in ms."""
        self._work = work
        self._send_padding = send_padding
        self._choices = sorted(streams.choices() if choices is None else choices, reverse=True)
        self._graphs: dict[tuple[int, int], torch.cuda.CUDAGraph] = {}
        self._warm: set[tuple[int, int]] = set()

    def bucket(self, size: int) -> int | None:
        """Returns the bucket to use for `size` rows or tokens; None: all are too small.

        It is the smallest one that is large enough, unless a larger one is clearly faster. Matrix products of some
        sizes are slow; which ones depends on the GPU, its libraries and the model. So the times on the whole device
        decide, for all numbers of SMs. A bucket that is not captured there counts as fast.
        """
        at = bisect.bisect_left(self._buckets, size)
        return self._chosen[at] if at < len(self._buckets) else None

    @property
    def useful(self) -> list[int]:
        """The buckets that passes use, as far as times are known."""
        return sorted(set(self._chosen))

    @property
    def least(self) -> int:
        """The smallest bucket."""
        return self._buckets[0]

    def is_captured(self, bucket: int) -> bool:
        """Returns whether the bucket is captured for the SMs in use."""
        return (bucket, self._streams.current) in self._graphs

    def run(self, bucket: int) -> None:
        """Launches a pass of that bucket on the SMs in use, in the current stream."""
        graph = self._graphs.get((bucket, self._streams.current))
        if graph is None:
            self._work(bucket)
        else:
            graph.replay()

    @property
    def total(self) -> int:
        """The number of graphs there will be. It falls when a bucket turns out to be slow: it is then not captured for
        fewer SMs."""
        return len(self._graphs.keys() | set(self._wanted()))

    @property
    def captured(self) -> int:
        return len(self._graphs)

    def missing(self) -> list[tuple[int, int]]:
        """Returns what is not captured, as (bucket, SMs): the most SMs first, and every second bucket before those
        between."""
        return [each for each in self._wanted() if each not in self._graphs]

    def _wanted(self) -> list[tuple[int, int]]:
        order, chosen = self._buckets[::-1][::2] + self._buckets[::-1][1::2], set(self._chosen)
        return [(b, sms) for sms in self._choices for b in order if sms == self._streams.all or b in chosen]

    def capture_one(self, bucket: int, sms: int) -> None:
        """Captures one graph, where it is wanted and missing. On the whole device it is timed too.

        No other work of this process may be on the device.
        """
        if sms not in self._choices or (bucket, sms) in self._graphs:
            return
        self._send_padding()
        back = self._streams.current
        self._streams.use(sms)
        with self._streams.on():
            # The first launch loads kernels and allocates workspaces of libraries, which is not allowed during a
            # capture.
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
        """Chooses buckets by the times known now.

        A bucket that would be skipped from now on is first timed once more, together with the one that is faster.
        """
        for bucket, chosen in zip(self._buckets, choose_buckets(self._buckets, self._times_ms), strict=True):
            if chosen != bucket and bucket in self._chosen:
                faster = min((b for b in self._times_ms if b > bucket), key=self._times_ms.__getitem__)
                self._time([bucket, faster], MORE_ROUNDS)
        self._chosen = choose_buckets(self._buckets, self._times_ms)

    def _time(self, buckets: Sequence[int], rounds: int) -> None:
        """Times the graphs of these buckets on the whole device, which is selected now. The least time ever measured
        counts."""
        found = replays_ms(
            [self._graphs[bucket, self._streams.all] for bucket in buckets], rounds, self._streams.stream
        )
        for bucket, ms in zip(buckets, found, strict=True):
            self._times_ms[bucket] = min(ms, self._times_ms.get(bucket, ms))


class GraphCapture:
    """Captures the graphs of several kinds of passes: those on the whole device first, kind after kind."""

    def __init__(self, kinds: Sequence[BucketGraphs]) -> None:
        self._kinds = kinds

    @property
    def total(self) -> int:
        return sum(graphs.total for graphs in self._kinds)

    @property
    def captured(self) -> int:
        return sum(graphs.captured for graphs in self._kinds)

    def run(self, budget_s: float, progress: CaptureProgress = lambda done, total: None) -> None:
        """Captures graphs for `budget_s` seconds. No other work of this process may be on the device."""
        until = time.monotonic() + budget_s
        while time.monotonic() < until:
            missing = [(graphs, bucket, sms) for graphs in self._kinds for bucket, sms in graphs.missing()]
            if not missing:
                return
            graphs, bucket, sms = max(missing, key=lambda one: one[2])  # the first of those on most SMs
            graphs.capture_one(bucket, sms)
            progress(self.captured, self.total)


def choose_buckets(buckets: Sequence[int], times_ms: Mapping[int, float]) -> list[int]:
    """Returns, for each bucket in ascending order, the bucket to use in its place.

    That is the bucket itself, unless it is clearly slower than a larger one. Then it is the next larger bucket that is
    timed and is used itself, which is faster too.
    """
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
    """Returns the least time that each graph takes the device, on the current stream, which is `stream`."""
    for graph in graphs:
        graph.replay()  # loads what the first launch of a graph loads, and wakes an idle device
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
    """Captures what `work` launches on the current stream. None of it is run."""
    enabled = gc.isenabled()
    gc.disable()  # a collection during the capture could free device memory, which would end the capture
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
