"""Orders in which waiting prompts can be computed, and the option `order` that lets a user choose one."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Literal, Protocol

from semipd.core.plan import Chunk
from semipd.core.snapshot import Snapshot, WaitingSequence
from semipd.policies.policy_options import option
from semipd.policies.toolkit.batching import fill_batch
from semipd.policies.toolkit.deadlines import DEADLINES, Ageing, DeadlineTuning, rank
from semipd.policies.toolkit.forecast import Forecast, Forecaster

OrderName = Literal["fcfs", "slack"]
"""The values of the option `order`."""


def order_option(default: OrderName) -> OrderName:
    """Declares the option `order`: a field of type `OrderName` for a policy's options."""
    return option(
        default,
        "The order of prompts. fcfs: higher priority first, then by arrival. slack: by deadline slack, with ageing.",
    )


class RankedPrompts:
    """The waiting sequences of one snapshot in the order in which they are to run."""

    def __init__(
        self,
        snapshot: Snapshot,
        order: Iterable[WaitingSequence],
        on_taken: Callable[[tuple[Chunk, ...]], None] | None = None,
    ) -> None:
        """`on_taken` hears of each batch that is taken."""
        self._snapshot = snapshot
        self._order = order
        self._on_taken = on_taken

    def take(
        self, batch_tokens: int | None = None, *, sequences: int | None = None, exact: bool = False
    ) -> tuple[Chunk, ...]:
        """Returns a batch from the front, for `Plan.prefill`. Call it at most once.

        `batch_tokens` and `exact` are those of `fill_batch`. `sequences`: the most sequences in it; None: any number.
        """
        chunks = fill_batch(self._snapshot, self._order, batch_tokens, exact=exact)[:sequences]
        if self._on_taken is not None:
            self._on_taken(chunks)
        return chunks


class PromptOrder(Protocol):
    """Orders the waiting sequences of each snapshot. It may remember what it saw."""

    def ranked(self, snapshot: Snapshot) -> RankedPrompts:
        """Returns the waiting sequences in order. Call it with each snapshot, also where nothing is taken then."""


class ByArrival:
    """Higher priority first; within one, the order of arrival."""

    def ranked(self, snapshot: Snapshot) -> RankedPrompts:
        return RankedPrompts(snapshot, by_priority_then_arrival(snapshot.waiting))


class BySlack:
    """Orders by deadline slack with ageing (toolkit.deadlines), under a latency model that follows the server."""

    def __init__(self, forecaster: Forecaster | None = None, tuning: DeadlineTuning = DEADLINES) -> None:
        """`forecaster`: one that the policy uses as well; None: one of its own."""
        self._forecaster = forecaster or Forecaster()
        self._tuning = tuning
        self._ageing = Ageing(tuning)

    def ranked(self, snapshot: Snapshot, forecast: Forecast | None = None) -> RankedPrompts:
        """Returns the waiting sequences in order. Call it with each snapshot, also where nothing is taken then.

        `forecast`: that of this snapshot, if the policy has it already.
        """
        forecast, waiting = forecast or self._forecaster.see(snapshot), snapshot.waiting
        self._ageing.see(waiting)
        ranking = rank(
            waiting,
            snapshot.now_s + forecast.in_flight_s() + forecast.launch_s,
            forecast.work(),
            margin=self._tuning.ttft_margin,
            overdue_first=self._ageing.overdue_first,
            tuning=self._tuning,
        )
        by_number = {w.sequence: w for w in waiting}
        order = [by_number[number] for number in ranking.order]
        return RankedPrompts(snapshot, order, lambda chunks: self._ageing.planned(chunks, waiting, ranking))

    def take(self, snapshot: Snapshot, batch_tokens: int | None = None) -> tuple[Chunk, ...]:
        """Returns a batch for `Plan.prefill`, the most urgent prompts first. Call it once for each snapshot."""
        return self.ranked(snapshot).take(batch_tokens)


def prompt_order(name: OrderName) -> PromptOrder:
    """Returns the order that the option `order` names."""
    return BySlack() if name == "slack" else ByArrival()


def by_priority_then_arrival(waiting: Iterable[WaitingSequence]) -> list[WaitingSequence]:
    """Returns the sequences sorted: higher priority first; within one, by arrival (their numbers rise with it)."""
    return sorted(waiting, key=lambda w: (-w.priority, w.sequence))
