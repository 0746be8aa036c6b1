"""The prefill worker: runs the batches that the coordinator sends, on a GPU one ahead of the device."""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import structlog
import torch

from semipd.engine.engine import PendingPrefill, PrefillItem, SequenceFailure, TokenOutcome
from semipd.internal.v1 import worker_pb2 as wk
from semipd.memory.account import Holder, PageAccount
from semipd.workers.backend import Backend, PrefillEngine
from semipd.workers.chunks import TOO_LARGE, Chunks, Opened
from semipd.workers.coordinator_link import HEARTBEAT_S, CoordinatorLink, Pulse

log = structlog.get_logger()


@dataclass(slots=True)
class Begun:
    """A batch on the device, or next for it."""

    opened: Opened
    pending: PendingPrefill | None = None
    """None: nothing to compute, or it has to be tried again chunk by chunk."""
    start_s: float = 0.0
    ended: bool = False

    @property
    def tokens(self) -> int:
        return sum(len(item.tokens) for item in self.opened.items)


class TurnPulse:
    """Stands in for the worker's pulse: an engine calls it whenever a pass has ended, before it looks at the outcomes,
    and its `report` again and again until then. So the other phase need not wait for what the CPU makes of a pass."""

    def __init__(self, pulse: Pulse, ended: Callable[[], None], meanwhile: Callable[[], None]) -> None:
        self._pulse, self._ended, self._meanwhile = pulse, ended, meanwhile

    def __call__(self) -> None:
        self._pulse()
        self._ended()

    def report(self) -> None:
        self._pulse.report()
        self._meanwhile()


class PrefillWorker:
    def __init__(
        self, link: CoordinatorLink, engine: PrefillEngine, account: PageAccount, me: Holder, compute: Backend
    ) -> None:
        self._link = link
        self._engine = engine
        self._chunks = Chunks(account, me)
        self._compute = compute
        self._plans: deque[wk.PrefillBatch] = deque()
        self._begun: deque[Begun] = deque()
        self._ready: Begun | None = None
        """The engine knows of it, and nothing may be prepared before it is launched."""
        self._done_s = 0.0
        self._pulse = Pulse(link, self._describe)
        self._over = False

    def run(self) -> None:
        """Until it is told to end."""
        while True:
            work = self._has_work
            self._compute.busy(work)
            self._hear(wait_s=0.0 if work or self._compute.has_spare_work() else HEARTBEAT_S)
            if self._over:
                return
            self._compute.busy(self._has_work)
            if self._compute.alternates():
                self._take_turn()
            else:
                self._go_on()
            if not work:
                self._compute.do_spare_work()
            self._pulse.report()

    @property
    def _has_work(self) -> bool:
        return bool(self._plans or self._ready or self._begun)

    def _go_on(self) -> None:
        """A batch is begun ahead of the one on the device, where the device allows for it."""
        if len(self._begun) <= self._engine.passes_ahead:
            self._launch_next()
        if self._begun and (not self._plans or len(self._begun) > self._engine.passes_ahead):
            self._finish(self._begun.popleft(), self._pulse)

    def _take_turn(self) -> None:
        """One batch, when it is our turn; everything that can be done before is done before."""
        if not self._begun:
            self._look_ahead()
            if self._ready is None:
                self._compute.end_turn()
                return
            self._compute.wait_for_turn(self._pulse.report)
            self._launch_next()
        begun = self._begun.popleft()
        self._finish(begun, TurnPulse(self._pulse, lambda: self._end_turn(begun), self._look_ahead))
        self._end_turn(begun)  # where nothing of it came to the device

    def _end_turn(self, begun: Begun) -> None:
        """Its pass has ended: the next one is the other phase's, or follows at once. The second call does nothing."""
        if begun.ended:
            return
        begun.ended = True
        self._look_ahead()
        following = self._ready.tokens if self._ready is not None else 0
        if self._compute.end_turn(computed=begun.tokens, following=following):
            self._launch_next()

    def _look_ahead(self) -> None:
        """While a pass is on the device: the batch that follows is made ready, whenever it comes."""
        self._hear(wait_s=0.0)
        if self._ready is None and self._plans:
            self._ready = self._prepare(self._plans.popleft())

    def _launch_next(self) -> None:
        if self._ready is None and self._plans:
            self._ready = self._prepare(self._plans.popleft())
        if self._ready is not None:
            begun, self._ready = self._ready, None
            self._launch(begun)
            self._begun.append(begun)

    def _hear(self, wait_s: float) -> None:
        message = self._link.receive(wait_s)
        while message is not None:
            match message.WhichOneof("message"):
                case "prefill":
                    self._plans.append(message.prefill)
                case "drop":
                    self._chunks.drop(message.drop.leases)
                case "set_shares":
                    self._compute.set_shares(message.set_shares)
                case "shutdown":
                    self._over = True
            message = self._link.receive()

    def _prepare(self, batch: wk.PrefillBatch) -> Begun:
        begun = Begun(self._chunks.open(batch))
        if begun.opened.items:
            with contextlib.suppress(torch.OutOfMemoryError, MemoryError):
                begun.pending = self._engine.prepare_prefill(begun.opened.items)
        return begun

    def _launch(self, begun: Begun) -> None:
        begun.start_s = time.perf_counter()
        if begun.pending is not None:
            self._compute.choose_share()
            try:
                begun.pending.launch()
            except (torch.OutOfMemoryError, MemoryError):
                begun.pending = None

    def _finish(self, begun: Begun, pulse: Callable[[], None]) -> None:
        """Answers for all chunks of a batch."""
        begun.opened.fill_all(self._outcomes(begun.pending, begun.opened.items, pulse))
        now = time.perf_counter()
        # A batch that was begun behind another had the device to itself from that one's end on.
        seconds, self._done_s = now - max(begun.start_s, self._done_s), now
        self._link.send(self._chunks.done(begun.opened, seconds))

    def _outcomes(
        self, pending: PendingPrefill | None, items: list[PrefillItem], pulse: Callable[[], None]
    ) -> list[TokenOutcome | None]:
        """Where memory runs out, the chunks are tried one by one, and who does not fit alone fails alone."""
        if not items:
            return []
        try:
            if pending is None:
                if self._ready is not None:
                    self._launch_next()
                pending = self._engine.begin_prefill(items)
            return pending.finish(pulse)
        except (torch.OutOfMemoryError, MemoryError) as error:
            if len(items) == 1:
                log.error("out of memory", error=str(error))
                return [SequenceFailure(TOO_LARGE)]
        return [outcome for item in items for outcome in self._outcomes(None, [item], self._pulse)]

    def _describe(self, beat: wk.Heartbeat) -> None:
        beat.answered_through = self._chunks.answered
        beat.idle = not self._has_work
