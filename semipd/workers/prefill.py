"""The prefill worker: computes the batches that the coordinator sends, on a GPU one ahead of the device."""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import structlog
import torch

from semipd.engine.engine import PendingPrefill, PrefillItem, SequenceFailure, TokenOutcome
from semipd.engine.pulse import Pulse
from semipd.internal.v1 import worker_pb2 as wk
from semipd.memory.account import Holder, PageAccount
from semipd.workers.backend import Backend, PrefillEngine
from semipd.workers.chunks import TOO_LARGE, AllocatedBatch, PrefillBatchTracker
from semipd.workers.coordinator_link import HEARTBEAT_S, CoordinatorLink, HeartbeatPulse

log = structlog.get_logger()


@dataclass(slots=True)
class PendingBatch:
    """A batch that is on the device, or the next for it."""

    allocated: AllocatedBatch
    prefill: PendingPrefill | None = None
    """None: there is nothing to compute, or it has to be tried again chunk by chunk."""
    start_s: float = 0.0
    ended: bool = False
    """Its turn has been ended."""

    @property
    def tokens(self) -> int:
        return sum(len(item.tokens) for item in self.allocated.items)


@dataclass(frozen=True, slots=True)
class LookAheadPulse:
    """A `Pulse` that also prepares what comes next, whenever it is asked to report: while the device computes."""

    pulse: Pulse
    look_ahead: Callable[[], None]

    def beat(self) -> None:
        self.pulse.beat()

    def report(self) -> None:
        self.pulse.report()
        self.look_ahead()


class PrefillWorker:
    """Computes prefill batches in the order in which they come, and answers each."""

    def __init__(
        self, link: CoordinatorLink, engine: PrefillEngine, account: PageAccount, me: Holder, backend: Backend
    ) -> None:
        self._link = link
        self._engine = engine
        self._batches = PrefillBatchTracker(account, me)
        self._backend = backend
        self._turns = backend.turns
        self._plans: deque[wk.PrefillBatch] = deque()
        self._launched: deque[PendingBatch] = deque()
        self._prepared: PendingBatch | None = None
        """The engine knows of it, and nothing else may be prepared before it is launched."""
        self._done_s = 0.0
        self._pulse = HeartbeatPulse(link, self._describe)
        self._over = False

    def run(self) -> None:
        """Works until the worker is told to end."""
        while True:
            work = self._has_work
            self._turns.busy(work)
            self._hear(wait_s=0.0 if work or self._backend.has_spare_work() else HEARTBEAT_S)
            if self._over:
                return
            self._turns.busy(self._has_work)
            if self._turns.alternating():
                self._take_turn()
            else:
                self._go_on()
            if not work:
                self._backend.do_spare_work()
            self._pulse.report()

    @property
    def _has_work(self) -> bool:
        return bool(self._plans or self._prepared or self._launched)

    def _go_on(self) -> None:
        """Launches a batch ahead of the one on the device, where the engine allows for it, and finishes the oldest."""
        if len(self._launched) <= self._engine.passes_ahead:
            self._launch_next()
        if self._launched and (not self._plans or len(self._launched) > self._engine.passes_ahead):
            self._finish(self._launched.popleft(), self._pulse)

    def _take_turn(self) -> None:
        """Computes one batch when it is our turn. All that can be done before the turn is done before it."""
        if not self._launched:
            self._look_ahead()
            if self._prepared is None:
                self._turns.end()
                return
            self._turns.wait(self._pulse)
            self._launch_next()
        batch = self._launched.popleft()
        # The turn ends with the pass: the other phase need not wait for what the CPU makes of the outcomes.
        pulse = LookAheadPulse(self._pulse, self._look_ahead)
        self._finish(batch, pulse, on_computed=lambda: self._end_turn(batch))
        self._end_turn(batch)  # where no part of the batch came to the device

    def _end_turn(self, batch: PendingBatch) -> None:
        """Gives the next pass to the other phase, or launches another of ours at once. A second call does nothing."""
        if batch.ended:
            return
        batch.ended = True
        self._look_ahead()
        following = self._prepared.tokens if self._prepared is not None else 0
        if self._turns.end(computed=batch.tokens, following=following):
            self._launch_next()

    def _look_ahead(self) -> None:
        """Prepares the batch that follows, as soon as it is there, while a pass is on the device."""
        self._hear(wait_s=0.0)
        self._prepare_next()

    def _prepare_next(self) -> None:
        if self._prepared is None and self._plans:
            self._prepared = self._prepare(self._plans.popleft())

    def _launch_next(self) -> None:
        self._prepare_next()
        if self._prepared is not None:
            batch, self._prepared = self._prepared, None
            self._launch(batch)
            self._launched.append(batch)

    def _hear(self, wait_s: float) -> None:
        message = self._link.receive(wait_s)
        while message is not None:
            match message.WhichOneof("message"):
                case "prefill":
                    self._plans.append(message.prefill)
                case "drop":
                    self._batches.drop(message.drop.leases)
                case "set_shares":
                    self._backend.set_shares(message.set_shares)
                case "shutdown":
                    self._over = True
            message = self._link.receive()

    def _prepare(self, plan: wk.PrefillBatch) -> PendingBatch:
        batch = PendingBatch(self._batches.allocate(plan))
        if batch.allocated.items:
            with contextlib.suppress(torch.OutOfMemoryError, MemoryError):
                batch.prefill = self._engine.prepare_prefill(batch.allocated.items)
        return batch

    def _launch(self, batch: PendingBatch) -> None:
        batch.start_s = time.perf_counter()
        if batch.prefill is not None:
            self._backend.choose_share()
            try:
                batch.prefill.launch()
            except (torch.OutOfMemoryError, MemoryError):
                batch.prefill = None

    def _finish(self, batch: PendingBatch, pulse: Pulse, on_computed: Callable[[], None] = lambda: None) -> None:
        """Waits for a batch and answers for all its chunks. Calls `on_computed` when the device is done with it."""
        batch.allocated.fill_all(self._outcomes(batch.prefill, batch.allocated.items, pulse, on_computed))
        now = time.perf_counter()
        # A batch that was launched behind another had the device to itself from that one's end on.
        seconds, self._done_s = now - max(batch.start_s, self._done_s), now
        self._link.send(self._batches.answer(batch.allocated, seconds))

    def _outcomes(
        self,
        prefill: PendingPrefill | None,
        items: list[PrefillItem],
        pulse: Pulse,
        on_computed: Callable[[], None] = lambda: None,
    ) -> list[TokenOutcome | None]:
        """Returns what came of the items.

        Where memory runs out, the chunks are tried one by one, and a chunk that does not fit alone fails alone.
        """
        if not items:
            return []
        try:
            if prefill is None:
                if self._prepared is not None:
                    self._launch_next()
                prefill = self._engine.begin_prefill(items)
            return prefill.finish(pulse, on_computed)
        except (torch.OutOfMemoryError, MemoryError) as error:
            if len(items) == 1:
                log.error("out of memory", error=str(error))
                return [SequenceFailure(TOO_LARGE)]
        return [outcome for item in items for outcome in self._outcomes(None, [item], self._pulse)]

    def _describe(self, beat: wk.Heartbeat) -> None:
        beat.answered_through = self._batches.answered
        beat.idle = not self._has_work
