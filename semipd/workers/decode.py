"""The decode worker: continuous batching, one step after another. It never waits for the coordinator inside a step.

On a GPU a step is launched before the outcomes of the one before it are read. So a sequence that has left the batch may
still be in a step that is on the device. Its pages are released when the batch says that they are quiet.

In mixed batches the worker computes prompts too: a step takes along chunks of one prefill batch (see `mixed_batches`).
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
from semipd.workers.backend import Backend, DecodeBatch, StepOutcomes
from semipd.workers.chunks import sampling_input_from_wire
from semipd.workers.coordinator_link import HEARTBEAT_S, CoordinatorLink, HeartbeatPulse
from semipd.workers.mixed_batches import MixedBatchRunner, StepLimits

log = structlog.get_logger()

STARVED_WAIT_S = 0.005
"""Seconds between two looks at a pool that has no page for any sequence here. The coordinator frees some meanwhile."""


@dataclass(frozen=True, slots=True)
class PreemptionRank:
    """Decides which sequence yields when the pool is full: the one of lowest priority, then the latest to arrive."""

    priority: int
    sequence: int


class DecodeWorker:
    """Runs the sequences that it is handed, and reports every token."""

    def __init__(
        self,
        link: CoordinatorLink,
        batch: DecodeBatch,
        account: PageAccount,
        me: Holder,
        backend: Backend,
        limits: StepLimits | None = None,
    ) -> None:
        """`limits`: the most that a step can take along of prompts; None: there is no limit."""
        self._link = link
        self._batch = batch
        self._account = account
        self._me = me
        self._backend = backend
        self._turns = backend.turns
        self._mixed = MixedBatchRunner(link, batch, account, me, limits or StepLimits())
        self._running: dict[int, PreemptionRank] = {}
        """The sequences of the batch, by lease."""
        self._held: frozenset[int] = frozenset()
        """Leases that the steps leave out. Some may not be in the batch."""
        self._leaving: set[int] = set()
        """Leases that have left the batch and whose pages the device may still write."""
        self._adopted = 0
        self._steps = 0
        self._report = wk.StepDone()
        """The next message: tokens, and leases that were dropped or preempted since the last one."""
        self._pulse = HeartbeatPulse(link, self._describe)
        self._over = False
        self._launched_s = 0.0
        """The time at which the step on the device was launched."""
        self._ended_s = 0.0
        """The time at which the last step that was waited for had ended."""
        self._resigns = False
        self._reported_s = 0.0

    def run(self) -> None:
        """Works until the worker is told to end, or to hand over its sequences."""
        while True:
            work = self._has_work()
            self._turns.busy(work)
            # Spare work takes a while, so it is not done while sequences are held: they may go on at any moment.
            spare = not self._running and self._backend.has_spare_work()
            self._hear(wait_s=0.0 if work or spare else HEARTBEAT_S)
            if self._over:
                return
            self._turns.busy(self._has_work())
            if self._resigns:
                self._hand_over()
                return
            if self._has_work():
                self._find_pages()
                self._step()
            elif spare and not work:
                self._backend.do_spare_work()
            self._send_report()
            self._pulse.report()

    def _has_work(self) -> bool:
        return bool(self._batch.flying or self._mixed.waiting or self._any_active())

    def _any_active(self) -> bool:
        """Returns whether the batch has a sequence that is not held."""
        return any(lease not in self._held for lease in self._running)

    # --- messages ---------------------------------------------------------------------------------------------------

    def _hear(self, wait_s: float) -> None:
        message = self._link.receive(wait_s)
        while message is not None:
            match message.WhichOneof("message"):
                case "adopt":
                    self._adopt(message.adopt)
                case "prefill":
                    self._mixed.add(message.prefill)
                case "drop":
                    for lease in message.drop.leases:
                        self._drop(lease)
                case "hold":
                    self._hold(message.hold)
                case "set_shares":
                    self._backend.set_shares(message.set_shares)
                case "resign":
                    self._resigns = True
                case "shutdown":
                    self._over = True
            message = self._link.receive()

    def _adopt(self, adopt: wk.Adopt) -> None:
        self._adopted = max(self._adopted, adopt.ordinal)
        if adopt.lease in self._running:
            return  # the message came twice
        if self._account.holder(adopt.lease) != self._me:
            self._report.dropped.append(adopt.lease)  # taken back before the message came
            return
        table = self._account.table(adopt.lease)
        self._batch.add(adopt.lease, adopt.context, table, sampling_input_from_wire(adopt.continuation))
        self._running[adopt.lease] = PreemptionRank(adopt.priority, adopt.sequence)
        log.debug("adopted", request_id=adopt.request_id, lease=adopt.lease, context_tokens=adopt.context)

    def _drop(self, lease: int) -> None:
        if self._mixed.drop(lease):
            return
        if self._running.pop(lease, None) is not None:
            self._leave(lease)
        elif lease not in self._leaving:
            self._release(lease)
        self._report.dropped.append(lease)

    def _hold(self, hold: wk.Hold) -> None:
        """Leaves the named sequences out of the next steps. All others take part again."""
        self._held = frozenset(hold.leases)
        self._batch.hold(self._held)

    def _leave(self, lease: int) -> None:
        """Takes a sequence out of the batch. Its pages follow when the device is done with them, mostly at once."""
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
        """Gives each sequence whose last page is full another one; preempts the least important where none is free."""
        wanting = sorted(self._batch.wanting_pages(), key=self._rank)
        for lease in wanting:
            if lease not in self._running:
                continue  # preempted for a more important one
            while not self._grow(lease):
                if self._leaving:
                    return  # pages are about to come free: the step goes on without those that want one
                yielding = max(self._running, key=self._rank)
                if yielding == lease and len(self._running) == 1:
                    self._report.starved = True
                    return
                self._preempt(yielding)
                if yielding == lease:
                    break

    def _rank(self, lease: int) -> tuple[int, int]:
        """Returns a sort key, the most important sequence first."""
        rank = self._running[lease]
        return -rank.priority, rank.sequence

    def _grow(self, lease: int) -> bool:
        """Returns False where no page is free."""
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
        del self._running[lease]
        self._leave(lease)
        self._report.preempted.append(lease)

    def _forget(self, lease: int) -> None:
        """Drops a sequence whose pages are no longer ours."""
        del self._running[lease]
        self._leave(lease)
        self._report.dropped.append(lease)

    # --- the step ---------------------------------------------------------------------------------------------------

    def _step(self) -> None:
        """Launches a step of all sequences that have room, and reports the outcomes of the step before."""
        if self._turns.enabled():
            self._await_turn()
        launched_s = time.perf_counter()
        self._backend.choose_share()
        rows = self._mixed.step(self._pulse, ahead=True)
        answered = self._mixed.answer(self._reported_s)
        if not self._batch.flying:
            self._turns.end()
            if not rows and not answered and self._any_active():
                time.sleep(STARVED_WAIT_S)
        self._add_outcomes(rows, launched_s)
        self._launched_s = launched_s
        self._release_quiet()

    def _await_turn(self) -> None:
        """Waits until a step may be launched, where the phases take turns.

        One step at a time is then on the device, so that a prompt never waits for two. The next one is prepared
        meanwhile. The outcomes of the last one are read while the device computes again, be it a pass of prefill or a
        step of ours.
        """
        if self._batch.flying:
            self._batch.prepare()
            self._batch.wait(self._pulse)
            self._ended_s = time.perf_counter()
            self._turns.end()
        if not self._turns.mine():
            rows = self._batch.drain(self._pulse)
            self._mixed.answer(self._reported_s)
            self._add_outcomes(rows, time.perf_counter())
            self._send_report()
            self._release_quiet()
            self._find_pages()
            self._batch.prepare()
            self._turns.wait(self._pulse)

    def _add_outcomes(self, rows: StepOutcomes, start_s: float) -> None:
        """Adds the outcomes of a step to the report. `start_s`: its launch, or that of the step launched since."""
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
                self._add_details(len(leases), outcome)
            if outcome.end is not None:
                self._end(lease)
            leases.append(lease)
            tokens.append(outcome.token)
            positions.append(outcome.position)
        report.leases.extend(leases)
        report.tokens.extend(tokens)
        report.positions.extend(positions)
        # With steps launched ahead, a step takes from the end of the one before it to its own end.
        now = time.perf_counter()
        report.seconds, self._reported_s = now - max(start_s, self._reported_s), now
        if self._ended_s > self._launched_s:  # it was waited for, so its own launch and end are known
            report.seconds = self._ended_s - self._launched_s

    def _add_details(self, row: int, outcome: SampledToken) -> None:
        if outcome.end is not None:
            self._report.ends.append(wk.RowEnd(row=row, end=end_to_wire(outcome.end)))
        if outcome.logprob is not None:
            self._report.logprobs.append(wk.RowLogprob(row=row, logprob=logprob_to_wire(outcome.logprob)))

    def _end(self, lease: int) -> None:
        """Forgets a sequence that has left the batch by itself."""
        del self._running[lease]
        self._leaving.add(lease)

    def _send_report(self) -> None:
        report = self._report
        if report.leases or report.dropped or report.preempted or report.failures or report.starved:
            self._link.send(wk.FromWorker(step_done=report))
            self._report = wk.StepDone()

    def _hand_over(self) -> None:
        """Reports what is on the device, then gives every lease to the coordinator, which has a successor for us.

        The coordinator takes back prompts that have not begun by itself, with their leases.
        """
        rows = self._batch.drain(self._pulse)
        self._mixed.answer(self._reported_s)
        self._add_outcomes(rows, time.perf_counter())
        self._release_quiet()
        for lease in self._running:
            try:
                self._account.hand_over(lease, self._me, COORDINATOR)
            except StaleLease:
                self._report.dropped.append(lease)
        self._send_report()
        self._link.send(wk.FromWorker(resigned=wk.Resigned()))

    def _describe(self, beat: wk.Heartbeat) -> None:
        beat.leases.extend(self._running)
        beat.held.extend(self._held.intersection(self._running))
        beat.adopted_through = self._adopted
        beat.answered_through = self._mixed.answered
        beat.idle = self._mixed.idle
