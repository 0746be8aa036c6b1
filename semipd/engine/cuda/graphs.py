"""CUDA graphs of passes: by bucket of rows or tokens, and by lane. What is not captured runs launch by launch."""

from __future__ import annotations

import bisect
import gc
import time
from collections.abc import Callable, Sequence

import torch

from semipd.engine.cuda.lanes import Lanes

Progress = Callable[[int, int], None]
"""Told of graphs captured and graphs in all."""


class Graphs:
    """`work(bucket)` launches a pass of that size on the current stream, reading and writing fixed addresses alone."""

    def __init__(
        self,
        lanes: Lanes,
        buckets: Sequence[int],
        work: Callable[[int], None],
        say_nothing: Callable[[], None],
        choices: Sequence[int] | None = None,
    ) -> None:
        """`say_nothing` sends a command of padding alone: what is launched to warm up and to capture touches no
        sequence. `choices`: SMs of the lanes that they are for; None: of all lanes."""
        self._lanes = lanes
        self._buckets = sorted(buckets)
        self._work = work
        self._say_nothing = say_nothing
        self._choices = sorted(lanes.choices() if choices is None else choices, reverse=True)
        self._graphs: dict[tuple[int, int], torch.cuda.CUDAGraph] = {}
        self._warm: set[tuple[int, int]] = set()

    def bucket(self, size: int) -> int | None:
        """The smallest bucket that holds so many; None: there is none."""
        at = bisect.bisect_left(self._buckets, size)
        return self._buckets[at] if at < len(self._buckets) else None

    @property
    def least(self) -> int:
        """The smallest bucket."""
        return self._buckets[0]

    def ready(self, bucket: int) -> bool:
        """Whether it is captured for the current lane."""
        return (bucket, self._lanes.current) in self._graphs

    def run(self, bucket: int) -> None:
        """On the current lane, in its stream."""
        graph = self._graphs.get((bucket, self._lanes.current))
        if graph is None:
            self._work(bucket)
        else:
            graph.replay()

    @property
    def total(self) -> int:
        return len(self._buckets) * len(self._choices)

    @property
    def captured(self) -> int:
        return len(self._graphs)

    def missing(self) -> list[tuple[int, int]]:
        """(bucket, SMs): first those on most SMs, every second bucket before the ones between."""
        order = self._buckets[::-1][::2] + self._buckets[::-1][1::2]
        return [(b, sms) for sms in self._choices for b in order if (b, sms) not in self._graphs]

    def capture_one(self, bucket: int, sms: int) -> None:
        """That one, where it is not captured and is one of these. No other work of this process may be on the
        device."""
        if sms not in self._choices or (bucket, sms) in self._graphs:
            return
        self._say_nothing()
        back = self._lanes.current
        self._lanes.use(sms)
        with self._lanes.on():
            # Kernels load and libraries take their workspaces with the first launch, which a capture forbids.
            for kind in ((bucket, self._lanes.all), (0, sms)):
                if kind not in self._warm:
                    self._work(bucket)
                    self._warm.add(kind)
            self._lanes.stream.synchronize()
            self._graphs[bucket, sms] = record(lambda: self._work(bucket))
        self._lanes.use(back)


class Capture:
    """The capture of several kinds of passes, in one order: what runs on the whole device first, kind after kind."""

    def __init__(self, kinds: Sequence[Graphs]) -> None:
        self._kinds = kinds

    @property
    def total(self) -> int:
        return sum(graphs.total for graphs in self._kinds)

    @property
    def captured(self) -> int:
        return sum(graphs.captured for graphs in self._kinds)

    def run(self, budget_s: float, progress: Progress = lambda done, total: None) -> None:
        """As many as fit into so many seconds. No other work of this process may be on the device."""
        until = time.monotonic() + budget_s
        missing = [(graphs, bucket, sms) for graphs in self._kinds for bucket, sms in graphs.missing()]
        for graphs, bucket, sms in sorted(missing, key=lambda one: -one[2]):  # stable: what is of one lane stays so
            if time.monotonic() >= until:
                return
            graphs.capture_one(bucket, sms)
            progress(self.captured, self.total)


def record(work: Callable[[], None]) -> torch.cuda.CUDAGraph:
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
