"""The decode worker: continuous batching, one step after another; it never waits for the coordinator inside a step.

On a GPU a step is launched before the one before it is answered for, so a sequence that has left may still be in one
that is on the device: its pages are released when the batch says that they are quiet.

In mixed batches it computes prompts, too: a step takes along the chunks of one batch (see `prompts`).
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import structlog

from semipd.engine.engine import SampledToken, SequenceFailure
from semipd.internal.v1 import worker_pb2 as wk
from semipd.memory.account import COORDINATOR, Holder, PageAccount
from semipd.memory.errors import StaleLease
from semipd.wire.codec import end_to_wire, logprob_to_wire
from semipd.workers.backend import Backend, Batch, Outcomes
from semipd.workers.coordinator_link import HEARTBEAT_S, CoordinatorLink, Pulse
from semipd.workers.mixed_batches import Prompts, Room
from semipd.workers.sampling_messages import sampling_input_from_wire

log = structlog.get_logger()

STARVED_WAIT_S = 0.005
"""Between two looks at a pool that has no page for anybody here; the coordinator frees some meanwhile."""


@dataclass(frozen=True, slots=True)
class Standing:
    """Who yields when the pool is full: the lowest priority, then the latest arrival."""

    priority: int
    sequence: int


class DecodeWorker:
    def __init__(
        self,
        link: CoordinatorLink,
        batch: Batch,
        account: PageAccount,
        me: Holder,
        compute: Backend,
        room: Room | None = None,
    ) -> None:
        """`room`: what a step of the batch can take along of prompts; None: anything."""
        self._link = link
        self._batch = batch
        self._account = account
        self._me = me
        self._compute = compute
        self._prompts = Prompts(link, batch, account, me, room or Room())
        self._standing: dict[int, Standing] = {}
        self._leaving: set[int] = set()
        """Have left the batch; their pages may still be written by the device."""
        self._adopted = 0
        self._steps = 0
        self._report = wk.StepDone()
        """What the next message says: leases that were dropped or preempted since the last."""
        self._pulse = Pulse(link, self._describe)
        self._over = False
        self._launched_s = self._ended_s = 0.0
        """The step on the device; and when that, or one before, had ended, if it was waited for."""
        self._resigns = False
        self._told_s = 0.0

    def run(self) -> None:
        """Until it is told to end."""
        while True:
            work = self._has_work()
            self._compute.busy(work)
            self._hear(wait_s=0.0 if work or self._compute.has_spare_work() else HEARTBEAT_S)
            if self._over:
                return
            self._compute.busy(self._has_work())
            if self._resigns:
                self._resign()
                return
            if self._has_work():
                self._find_pages()
                self._step()
            elif not work:
                self._compute.do_spare_work()
            self._send_report()
            self._pulse.report()

    def _has_work(self) -> bool:
        return bool(self._standing or self._batch.flying or self._prompts.waiting)

    # --- messages ---------------------------------------------------------------------------------------------------

    def _hear(self, wait_s: float) -> None:
        message = self._link.receive(wait_s)
        while message is not None:
            match message.WhichOneof("message"):
                case "adopt":
                    self._adopt(message.adopt)
                case "prefill":
                    self._prompts.add(message.prefill)
                case "drop":
                    for lease in message.drop.leases:
                        self._drop(lease)
                case "set_shares":
                    self._compute.set_shares(message.set_shares)
                case "resign":
                    self._resigns = True
                case "shutdown":
                    self._over = True
            message = self._link.receive()

    def _adopt(self, adopt: wk.Adopt) -> None:
        self._adopted = max(self._adopted, adopt.ordinal)
        if adopt.lease in self._standing:
            return  # said twice
        if self._account.holder(adopt.lease) != self._me:
            self._report.dropped.append(adopt.lease)  # taken back before the message came
            return
        table = self._account.table(adopt.lease)
        self._batch.add(adopt.lease, adopt.context, table, sampling_input_from_wire(adopt.continuation))
        self._standing[adopt.lease] = Standing(adopt.priority, adopt.sequence)
        log.debug("adopted", request_id=adopt.request_id, lease=adopt.lease, context_tokens=adopt.context)

    def _drop(self, lease: int) -> None:
        if self._prompts.drop(lease):
            return
        if self._standing.pop(lease, None) is not None:
            self._leave(lease)
        elif lease not in self._leaving:
            self._release(lease)
        self._report.dropped.append(lease)

    def _leave(self, lease: int) -> None:
        """Out of the batch; its pages follow when the device has done with them, mostly at once."""
        self._batch.remove(lease)
        self._leaving.add(lease)
        self._release_quiet()

    def _release_quiet(self) -> None:
        for lease in self._batch.quiet():
            self._leaving.discard(lease)
            self._release(lease)

    def _release(self, lease: int) -> None:
        try:
            self._account.release(lease, self._me)
        except StaleLease:
            log.debug("released before", lease=lease)

    # --- pages ------------------------------------------------------------------------------------------------------

    def _find_pages(self) -> None:
        """Gives each sequence whose last page is full another one; takes from the least important if none is free."""
        wanting = sorted(self._batch.wanting_pages(), key=self._rank)
        for lease in wanting:
            if lease not in self._standing:
                continue  # gave way to a more important one
            while not self._grow(lease):
                if self._leaving:
                    return  # pages are on their way: nobody need give way, the step goes on without those that want
                yielding = max(self._standing, key=self._rank)
                if yielding == lease and len(self._standing) == 1:
                    self._report.starved = True
                    return
                self._preempt(yielding)
                if yielding == lease:
                    break

    def _rank(self, lease: int) -> tuple[int, int]:
        """The most important first."""
        standing = self._standing[lease]
        return -standing.priority, standing.sequence

    def _grow(self, lease: int) -> bool:
        try:
            pages = self._account.take(lease, 1, self._me)
        except StaleLease:
            self._forget(lease)
            return True
        if pages is None:
            return False
        self._batch.grow(lease, pages)
        return True

    def _preempt(self, lease: int) -> None:
        del self._standing[lease]
        self._leave(lease)
        self._report.preempted.append(lease)

    def _forget(self, lease: int) -> None:
        """Its pages are no longer ours."""
        del self._standing[lease]
        self._leave(lease)
        self._report.dropped.append(lease)

    # --- the step ---------------------------------------------------------------------------------------------------

    def _step(self) -> None:
        """Launches a step of all that have room, and answers for the one before."""
        if self._compute.takes_turns():
            self._await_turn()
        launched_s = time.perf_counter()
        self._compute.choose_share()
        rows = self._prompts.step(self._pulse, ahead=True)
        answered = self._prompts.answer(self._told_s)
        if not self._batch.flying:
            self._compute.end_turn()
            if not rows and not answered and self._standing:
                time.sleep(STARVED_WAIT_S)
        self._tell(rows, launched_s)
        self._launched_s = launched_s
        self._release_quiet()

    def _await_turn(self) -> None:
        """Where the phases take turns, one step at a time is on the device, so that a prompt never waits for two. The
        next one is made ready meanwhile; and what the last one made is looked at while the device computes again, be
        it prefill's pass or our own."""
        if self._batch.flying:
            self._batch.prepare()
            self._batch.wait(self._pulse)
            self._ended_s = time.perf_counter()
            self._compute.end_turn()
        if not self._compute.my_turn():
            rows = self._batch.drain(self._pulse)
            self._prompts.answer(self._told_s)
            self._tell(rows, time.perf_counter())
            self._send_report()
            self._release_quiet()
            self._find_pages()
            self._batch.prepare()
            self._compute.wait_for_turn(self._pulse.report)

    def _tell(self, rows: Outcomes, start: float) -> None:
        """Into the report: what a step made."""
        if not rows:
            return
        report = self._report
        self._steps += 1
        report.step = self._steps
        report.context_tokens = self._batch.context_tokens()
        leases: list[int] = []
        tokens: list[int] = []
        positions: list[int] = []
        for lease, outcome in rows:
            if isinstance(outcome, SequenceFailure):
                self._end(lease)
                report.failures.append(wk.LeaseFailure(lease=lease, error=outcome.error))
                continue
            if outcome.end is not None or outcome.logprob is not None:
                self._note(len(leases), outcome)
            if outcome.end is not None:
                self._end(lease)
            leases.append(lease)
            tokens.append(outcome.token)
            positions.append(outcome.position)
        report.leases.extend(leases)
        report.tokens.extend(tokens)
        report.positions.extend(positions)
        # From one step's end to the next one's: with steps launched ahead, that is what a step takes.
        now = time.perf_counter()
        report.seconds, self._told_s = now - max(start, self._told_s), now
        if self._ended_s > self._launched_s:  # it was waited for: that is from its own launch to its end
            report.seconds = self._ended_s - self._launched_s

    def _note(self, row: int, outcome: SampledToken) -> None:
        if outcome.end is not None:
            self._report.ends.append(wk.RowEnd(row=row, end=end_to_wire(outcome.end)))
        if outcome.logprob is not None:
            self._report.logprobs.append(wk.RowLogprob(row=row, logprob=logprob_to_wire(outcome.logprob)))

    def _end(self, lease: int) -> None:
        """It has left the batch by itself."""
        del self._standing[lease]
        self._leaving.add(lease)

    def _send_report(self) -> None:
        report = self._report
        if report.leases or report.dropped or report.preempted or report.failures or report.starved:
            self._link.send(wk.FromWorker(step_done=report))
            self._report = wk.StepDone()

    def _resign(self) -> None:
        """Reports what is on the device, then gives every lease to the coordinator, who has a successor for us. Prompts
        that have not begun it takes back by itself, with their leases."""
        rows = self._batch.drain(self._pulse)
        self._prompts.answer(self._told_s)
        self._tell(rows, time.perf_counter())
        self._release_quiet()
        for lease in self._standing:
            try:
                self._account.hand_over(lease, self._me, COORDINATOR)
            except StaleLease:
                self._report.dropped.append(lease)
        self._send_report()
        self._link.send(wk.FromWorker(resigned=wk.Resigned()))

    def _describe(self, beat: wk.Heartbeat) -> None:
        beat.leases.extend(self._standing)
        beat.adopted_through = self._adopted
        beat.answered_through = self._prompts.answered
        beat.idle = self._prompts.idle
