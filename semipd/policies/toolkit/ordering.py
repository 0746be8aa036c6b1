"""The options `order` and `chunk`, for policies that leave to their user how prompts are ordered and cut."""

from __future__ import annotations

from collections.abc import Iterable

from semipd.core.plan import Chunk, Order
from semipd.core.snapshot import SequenceId, Snapshot, WaitingSequence
from semipd.policies.options import Options
from semipd.policies.toolkit.batching import fill_batch
from semipd.policies.toolkit.deadlines import Ageing, Ranking, rank
from semipd.policies.toolkit.forecast import Forecast

ORDERS = ("fcfs", "slack")
UNBOUNDED = 2**31 - 1
"""Tokens in a batch: as many as the engine takes."""
MARGIN = 0.05
"""Of each wish, kept in reserve for what no estimate knows."""


def by_priority_then_arrival(waiting: tuple[WaitingSequence, ...]) -> tuple[SequenceId, ...]:
    """Higher priority first; within one, the order of arrival (sequence numbers rise with it)."""
    return tuple(w.sequence for w in sorted(waiting, key=lambda w: (-w.priority, w.sequence)))


class BySlack:
    """Deadline slack with ageing (semipd.policies.toolkit.deadlines), under a model that follows the server."""

    def __init__(self, forecast: Forecast | None = None, margin: float = MARGIN) -> None:
        self.forecast = forecast or Forecast()
        self._margin = margin
        self._ageing = Ageing()
        self._ranking = Ranking(())

    def order(self, snapshot: Snapshot) -> Order:
        forecast = self.forecast
        forecast.see(snapshot)
        self._ageing.see(snapshot.waiting)
        start = snapshot.now_s + forecast.in_flight_s(snapshot) + forecast.launch_s()
        self._ranking = rank(
            snapshot.waiting,
            start,
            forecast.work(snapshot),
            margin=self._margin,
            late_first=self._ageing.late_first,
        )
        return Order(self._ranking.order)

    def planned(self, chunks: Iterable[Chunk], snapshot: Snapshot) -> None:
        """Call with the batch that was filled from the last `order`, of the same snapshot."""
        self._ageing.planned(chunks, snapshot.waiting, self._ranking)


class Prompts:
    """Reads `order` and `chunk`, and does what they say."""

    def __init__(self, read: Options, *, order: str, chunk: int) -> None:
        """`order` and `chunk` are the defaults. Without `chunk` (0) there is no such option, and the limits of the
        snapshot bound a batch."""
        self._chunk = read.integer("chunk", default=chunk, low=1) if chunk else UNBOUNDED
        self._slack = BySlack() if read.choice("order", default=order, among=ORDERS) == "slack" else None

    def order(self, snapshot: Snapshot) -> Order:
        if self._slack is not None:
            return self._slack.order(snapshot)
        return Order(by_priority_then_arrival(snapshot.waiting))

    def fill(self, snapshot: Snapshot, order: Order) -> tuple[Chunk, ...]:
        chunks = fill_batch(snapshot, order, self._chunk)
        if self._slack is not None:
            self._slack.planned(chunks, snapshot)
        return chunks
