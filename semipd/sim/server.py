"""The coordinator in simulated time: admission, the queue, plans through the policy host's checks, the pool's pages.

As `semipd.coordinator`: two batches ahead with the worker that computes prompts, a plan whenever one can be given out
and every 20 ms, ready sequences into the decode batch by priority and arrival. Where no pages are left, the youngest
sequence of the lowest priority gives its own back. A request whose deadline passes, or whose client leaves, ends with
all its sequences, and their pages are free again.
"""

from __future__ import annotations

import heapq
import math

from semipd.coordinator.observations import Observations
from semipd.coordinator.requests import Stage
from semipd.core.config import MIXED_TOKENS, PAGE_SIZE, PLANS_AHEAD, REVIEW_S, pages_for
from semipd.core.errors import Reason
from semipd.core.partition import Mode, Phase, Shares
from semipd.core.plan import Plan
from semipd.core.sms import split_sms
from semipd.core.snapshot import Completion, FirstToken, PageUse, Snapshot, Step
from semipd.sim.client_metrics import TokenCounts, TokenGaps
from semipd.sim.decode_worker import SimDecodeWorker
from semipd.sim.device import SimBatch, SimDevice
from semipd.sim.execution_times import Times
from semipd.sim.interfaces import PolicyAsker
from semipd.sim.prefill_worker import SimPrefillWorker
from semipd.sim.request import NEVER, SimRequest, SimSequence, running
from semipd.sim.sequence_table import SequenceTable
from semipd.sim.settings import SimSettings


class SimServer:
    """A simulated server. `semipd.sim.replay` drives it: it sets the time and says what has happened."""

    def __init__(
        self, policy: PolicyAsker, settings: SimSettings, times: Times, count_until_s: float = math.inf
    ) -> None:
        """Tokens that come after `count_until_s` do not count as throughput."""
        self.settings = settings
        self.policy = policy
        self.now_s = 0.0
        self.free_pages = settings.pages
        self.gaps = TokenGaps()
        self.tokens = TokenCounts(count_until_s)
        self.plans = 0
        """Number of plans that the policy was asked for."""
        limits, overheads = settings.limits, settings.overheads
        first = split_sms(settings.shares, limits.sms)
        self.device = SimDevice(times, limits.sms, overheads.prepare_s, overheads.handover_s, first)
        self.prefill = SimPrefillWorker(self.device)
        self.decode = SimDecodeWorker(self.device, self, min(limits.max_batch_tokens, MIXED_TOKENS))
        self.shares = first.granted
        self.reviewed_s = 0.0
        self.decoding = 0
        """Sequences that were handed over to the decode worker and have not left it."""
        self.next_limit_s = math.inf
        """The moment of the next deadline, or at which the next client leaves."""
        self._limits: list[tuple[float, int, SimRequest]] = []
        """A heap of these moments. The number breaks ties; it is odd where the client leaves."""
        self._asked_shares: Shares | None = None
        self._decode_limit = limits.max_running
        self._observations = Observations()
        self._table = SequenceTable()
        self._told_s = 0.0
        """The moment of the last decode step's answer."""

    # --- what can be watched -----------------------------------------------------------------------------------------

    @property
    def alive(self) -> int:
        """Sequences that have been accepted and are not over."""
        return len(self._table)

    @property
    def waiting(self) -> int:
        """Sequences that wait and have nothing with a worker."""
        return self._table.idle

    @property
    def prefilling(self) -> int:
        """Sequences of which a chunk is with a worker."""
        return len(self._table.waiting) - self._table.idle

    def snapshot(self) -> Snapshot:
        return Snapshot(
            self.now_s,
            self._table.shown_waiting(),
            running(self._table.views(), self.decode.done, self._told_s),
            PageUse(self.free_pages, self.settings.pages, PAGE_SIZE),
            self.settings.limits,
            self.shares,
            self.device.mode,
            len(self.prefill.batches) + len(self.decode.batches),
            self._observations.observed(),
        )

    # --- what happens -----------------------------------------------------------------------------------------------

    def submit(self, request: SimRequest) -> None:
        """Accepts a request, or refuses it: then `request.reason` says why."""
        request.arrival_s = self.now_s
        first = request.sequences[0]
        if self._table.idle + len(request.sequences) > self.settings.max_waiting:
            request.refused, request.reason = True, Reason.QUEUE_FULL.value
        elif not (answer := self.policy.admit(self.snapshot(), first.as_waiting())).accept:
            request.refused, request.reason = True, Reason.DEADLINE_UNMEETABLE.value
            request.why = answer.why
        else:
            for sequence in request.sequences:
                self._table.add(sequence)
            if request.deadline_s is not None:
                self._look_at(request.deadline_s, request, leaves=False)
            if request.cancel_after_s is not None:
                leaves_s = request.sent_s + request.cancel_after_s + self.settings.overheads.arrive_s
                self._look_at(leaves_s, request, leaves=True)

    def _look_at(self, moment: float, request: SimRequest, *, leaves: bool) -> None:
        heapq.heappush(self._limits, (moment, 2 * request.index + leaves, request))
        self.next_limit_s = self._limits[0][0]

    def _expire(self) -> None:
        """Ends the requests whose deadline has passed or whose client has left."""
        while self._limits and self._limits[0][0] <= self.now_s:
            _, number, request = heapq.heappop(self._limits)
            if not request.over:
                self._stop(request, Reason.CANCELLED_BY_CLIENT if number % 2 else _expired(request))
        self.next_limit_s = self._limits[0][0] if self._limits else math.inf

    def _stop(self, request: SimRequest, reason: Reason) -> None:
        """Ends a request with all its sequences that are alive, and frees their pages."""
        for sequence in request.sequences:
            if sequence.stage is not None:
                self._retire(sequence)
        request.stopped_s, request.reason = self.now_s, reason.value

    def _retire(self, sequence: SimSequence) -> None:
        """Takes a sequence away, whatever its stage. The pages of a chunk that is computed now are free when the worker
        has answered for it, all others at once."""
        stage = sequence.stage
        if stage is Stage.WAITING or stage is Stage.PREFILLING:
            self._table.stop_waiting(sequence)
        else:
            self._stop_running(sequence)
        sequence.stage = None
        if stage is Stage.PREFILLING and not (self.prefill.drop(sequence, self.now_s) or self.decode.drop(sequence)):
            return
        self._free(sequence)

    def _stop_running(self, sequence: SimSequence) -> None:
        """Takes a sequence out of those that run, with what it has by now."""
        if sequence.stage is Stage.DECODING:
            self.decode.take_out(sequence)
            self._left_batch(sequence)
        else:
            self._table.stop_running(sequence)

    def _left_batch(self, sequence: SimSequence) -> None:
        """Records the latest token of a sequence that the decode worker has taken out, and lets it run no longer."""
        if sequence.joined <= self.decode.done:
            sequence.last_token_s = self._told_s
            sequence.largest_gap_s = max(sequence.largest_gap_s, self.gaps.longest_since(sequence.joined + 1))
        self.decoding -= 1
        self._table.stop_running(sequence)

    def batch_done(self) -> None:
        """Takes the results of the prefill pass on the device, which has ended."""
        self._answered(self.prefill.finish(self.now_s))

    def _answered(self, batch: SimBatch) -> None:
        tokens = batch.tokens
        for sequence, count in batch.chunks:
            if sequence.stage is None:  # it ended while the worker computed
                tokens -= count
                self._free(sequence)
                continue
            sequence.computed += count
            sequence.in_flight, sequence.seen = 0, None
            if sequence.computed < sequence.to_compute:
                self._table.back(sequence)
            else:
                self._table.stop_waiting(sequence)
                self._sampled(sequence)
        if tokens:
            self._observe(Phase.PREFILL, batch.seconds, len(batch.chunks), tokens, batch.context_tokens, batch.mode)

    def _sampled(self, sequence: SimSequence) -> None:
        """Takes the token that the pass over a prompt has sampled: the first, or the one after a preemption."""
        now, request = self.now_s, sequence.request
        sequence.output += 1
        self.tokens.output(now + self.settings.overheads.deliver_s, 1)
        if sequence.first_token_s is None:
            sequence.first_token_s = now
            if sequence.index == 0:
                self.tokens.prompt(now + self.settings.overheads.deliver_s, sequence.prompt_len)
            self._observations.first_token(FirstToken(now, now - request.arrival_s, sequence.prompt_len, request.slo))
        else:
            self._record_gap(sequence)
        sequence.last_token_s = now
        if sequence.output == sequence.output_len:
            self._complete(sequence)
        else:
            self._table.make_ready(sequence)

    def step_done(self) -> None:
        """Takes the results of the decode step on the device, which has ended."""
        step, now = self.decode.finish(self.now_s), self.now_s
        if step.load is not None and step.load.last:
            self._answered(step.load.batch)
        if not step.rows:
            return
        dropped = step.dropped
        joiners = [s for s in step.joiners if s not in dropped] if dropped else step.joiners
        for sequence in joiners:
            self._record_gap(sequence)
        rows = step.rows - len(dropped)
        self.gaps.step(step.number, now - self._told_s, rows - len(joiners))
        self._told_s = now
        self.tokens.output(now + self.settings.overheads.deliver_s, rows)
        for sequence in step.leavers:
            self.paused(sequence, step.number - sequence.joined + 1)
        for sequence in step.enders:
            sequence.pages = pages_for(sequence.computed + step.number - sequence.joined + 1)
            sequence.output = sequence.output_len
            self._left_batch(sequence)
            self._complete(sequence)
        if rows:
            self._observe(Phase.DECODE, now - step.run.start_s, rows, rows, step.context_tokens, self.device.mode)

    def _record_gap(self, sequence: SimSequence) -> None:
        """Records the time between two tokens that a sequence has for itself."""
        gap = self.now_s - sequence.last_token_s
        self.gaps.one(gap)
        sequence.largest_gap_s = max(sequence.largest_gap_s, gap)

    def _complete(self, sequence: SimSequence) -> None:
        sequence.stage, sequence.end_s = None, self.now_s
        self._free(sequence)
        ttft, tpot = sequence.ttft_s, sequence.tpot_s
        assert ttft is not None
        seen = Completion(self.now_s, tpot, sequence.output, sequence.request.slo)
        self._observations.completion(seen, ttft)

    def _observe(self, phase: Phase, took: float, count: int, tokens: int, context: int, mode: Mode) -> None:
        self._observations.step(Step(phase, self.now_s, took, count, tokens, context, self.shares, mode))

    # --- acting -----------------------------------------------------------------------------------------------------

    def act(self) -> None:
        """Does what is to be done after all that has happened at a moment."""
        if self.next_limit_s <= self.now_s:
            self._expire()
        table = self._table
        room = table.idle > 0 and self._has_room(self.device.mode)
        if room or (self.now_s >= self.reviewed_s + REVIEW_S and self.alive):
            self.reviewed_s = self.now_s
            self.plans += 1
            self._follow(self.policy.plan(self.snapshot()))
        if table.ready:
            self._hand_over()
        if self.free_pages == 0:
            self._unjam()

    def _has_room(self, mode: Mode) -> bool:
        """Tells whether the worker that computes prompts in that mode can take another batch."""
        return len((self.decode if mode is Mode.MIXED else self.prefill).batches) < PLANS_AHEAD

    def _follow(self, plan: Plan) -> None:
        for number in plan.preempt:
            sequence = self._table.running(number)
            self._stop_running(sequence)
            self._start_over(sequence)
        self.decode.hold = plan.hold
        self.device.mode, self.device.turn_tokens = plan.mode, plan.step_tokens or 1
        if plan.shares is not None and plan.shares != self._asked_shares:
            self._asked_shares = plan.shares
            self.device.split = split_sms(plan.shares, self.settings.limits.sms)
            self.shares = self.device.split.granted
        self._decode_limit = plan.decode_limit or self.settings.limits.max_running
        if plan.prefill and self._has_room(plan.mode):
            self._give_out(plan)

    def _give_out(self, plan: Plan) -> None:
        """Takes pages here and not when the worker begins, so that no pass ever fails for want of them."""
        chunks: list[tuple[SimSequence, int]] = []
        tokens, context, pairs = 0, 0, 0.0
        for chunk in plan.prefill:
            sequence, count = self._table.waiting[chunk.sequence], chunk.tokens
            chunks.append((sequence, count))
            tokens += count
            context += sequence.computed + count
            pairs += count * (sequence.computed + count / 2)
            held = pages_for(sequence.computed + count)
            self.free_pages -= held - sequence.pages
            sequence.pages = held
            sequence.in_flight, sequence.seen = count, None
            if sequence.prefill_start_s is None:
                sequence.prefill_start_s = self.now_s
        self._table.give_out(sequence for sequence, _ in chunks)
        heard = self.now_s + self.settings.overheads.turnaround_s
        batch = SimBatch(chunks, tokens, context, pairs, heard, plan.mode, plan.step_tokens)
        if plan.mode is Mode.MIXED:
            self.decode.give(batch)
        else:
            self.prefill.give(batch)

    def _hand_over(self) -> None:
        """Hands what is ready to the decode worker, by priority and arrival, while the batch has room."""
        room = min(self._decode_limit, self.settings.limits.max_running) - self.decoding
        if room <= 0:
            return
        ready, hold = self._table.ready, self.decode.hold
        if len(ready) > 1:
            ready.sort(key=lambda sequence: sequence.rank)
        going = [s for s in ready if s.number not in hold][:room] if hold else ready[:room]
        heard = self.now_s + self.settings.overheads.turnaround_s
        for sequence in going:
            sequence.stage = Stage.DECODING
            self.decode.adopted.append((heard, sequence))
        self.decoding += len(going)
        if hold:
            self._table.ready = [s for s in ready if s.stage is Stage.READY]
        else:
            del ready[:room]

    # --- for the decode worker --------------------------------------------------------------------------------------

    def joined(self, sequence: SimSequence) -> None:
        """See `DecodeOwner`."""
        self._table.show_anew(sequence)

    def paused(self, sequence: SimSequence, steps: int) -> None:
        """See `DecodeOwner`."""
        if steps:
            sequence.largest_gap_s = max(sequence.largest_gap_s, self.gaps.longest_since(sequence.joined + 1))
            sequence.last_token_s = self._told_s
            sequence.computed += steps
            sequence.output += steps
            sequence.pages = pages_for(sequence.computed)
        sequence.joined = NEVER
        self._table.show_anew(sequence)

    def preempted(self, sequence: SimSequence) -> None:
        """See `DecodeOwner`."""
        self._left_batch(sequence)
        self._start_over(sequence)

    # --- pages ------------------------------------------------------------------------------------------------------

    def take_pages(self, count: int) -> bool:
        """See `DecodeOwner`."""
        if count > self.free_pages:
            return False
        self.free_pages -= count
        return True

    def _free(self, sequence: SimSequence) -> None:
        self.free_pages += sequence.pages
        sequence.pages = 0

    def _start_over(self, sequence: SimSequence) -> None:
        """Frees the pages of a sequence that is with no worker: its prompt and output are computed again."""
        self._free(sequence)
        sequence.computed = 0
        sequence.joined, sequence.seen = NEVER, None
        sequence.preemptions += 1
        if sequence.stage is Stage.WAITING:
            self._table.changed()
        else:
            self._table.wait_again(sequence)

    def _unjam(self) -> None:
        """Frees pages where nobody can go on for want of them: of the sequences that nobody computes on, the least
        important gives its own back."""
        if self.prefill.batches or self.decode.batches:
            return
        table = self._table
        if not self.decoding:
            if table.ready or table.idle <= 1:
                return
        elif not self.decode.starved:
            return  # the decode worker goes on, or finds pages among its own
        holders = [s for s in (*table.waiting.values(), *table.ready) if s.pages]
        if holders:
            sequence = max(holders, key=lambda s: s.rank)
            if sequence.stage is Stage.READY:
                table.stop_running(sequence)
            self._start_over(sequence)


def _expired(request: SimRequest) -> Reason:
    """Returns the reason that the server names for a deadline that has passed."""
    started = any(s.prefill_start_s is not None for s in request.sequences)
    return Reason.EXPIRED_RUNNING if started else Reason.EXPIRED_IN_QUEUE
