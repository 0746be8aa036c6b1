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
    ) -> None:
        """`say_nothing` sends a command of padding alone: what is launched to warm up and to capture touches no
        sequence."""
        self._lanes = lanes
        self._buckets = sorted(buckets)
        self._work = work
        self._say_nothing = say_nothing
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

    def run(self, bucket: int) -> None:
        """On the current lane, in its stream."""
        graph = self._graphs.get((bucket, self._lanes.current))
        if graph is None:
            self._work(bucket)
        else:
            graph.replay()

    @property
    def total(self) -> int:
        return len(self._buckets) * len(self._lanes.choices())

    @property
    def captured(self) -> int:
        return len(self._graphs)

    def missing(self) -> list[tuple[int, int]]:
        """(bucket, SMs): first those on all SMs, every second bucket before the ones between."""
        order = self._buckets[::-1][::2] + self._buckets[::-1][1::2]
        lanes = sorted(self._lanes.choices(), reverse=True)
        return [(b, sms) for sms in lanes for b in order if (b, sms) not in self._graphs]

    def capture(self, budget_s: float, progress: Progress = lambda done, total: None) -> None:
        """As many as fit into so many seconds. No other work of this process may be on the device."""
        self._say_nothing()
        until = time.monotonic() + budget_s
        enabled = gc.isenabled()
        gc.disable()  # a collection while a stream is captured could free device memory, which ends the capture
        try:
            for bucket, sms in self.missing():
                if time.monotonic() >= until:
                    return
                self._capture(bucket, sms)
                progress(self.captured, self.total)
        finally:
            if enabled:
                gc.enable()

    def capture_one(self, bucket: int, sms: int) -> None:
        """That one, where it is not captured; as `capture`."""
        if (bucket, sms) not in self._graphs:
            self._say_nothing()
            self._capture(bucket, sms)

    def _capture(self, bucket: int, sms: int) -> None:
        back = self._lanes.current
        self._lanes.use(sms)
        with self._lanes.on():
            # Kernels load and libraries take their workspaces with the first launch, which a capture forbids.
            for kind in ((bucket, self._lanes.all), (0, sms)):
                if kind not in self._warm:
                    self._work(bucket)
                    self._warm.add(kind)
            self._lanes.stream.synchronize()
            graph = torch.cuda.CUDAGraph()
            graph.capture_begin(capture_error_mode="thread_local")
            try:
                self._work(bucket)
            finally:
                graph.capture_end()
        self._graphs[bucket, sms] = graph
        self._lanes.use(back)
