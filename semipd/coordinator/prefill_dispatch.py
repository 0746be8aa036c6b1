"""Gives plans to whoever computes prompts and hears the answers: the prefill worker, or in mixed batches decode's."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from dataclasses import dataclass

import structlog

from semipd.coordinator.admission import close
from semipd.coordinator.requests import Gap, SequenceState, Stage
from semipd.coordinator.state import CoordinatorState, Worker
from semipd.core.config import PLANS_AHEAD
from semipd.core.errors import InternalError
from semipd.core.partition import Mode, Phase
from semipd.core.plan import Chunk
from semipd.core.snapshot import FirstToken, SequenceId, Step
from semipd.internal.v1 import worker_pb2 as wk
from semipd.memory.account import COORDINATOR, Holder, Role
from semipd.memory.errors import NoLease, StaleLease
from semipd.wire.codec import end_from_wire, logprob_from_wire, sampling_to_wire, stopping_to_wire

log = structlog.get_logger()

LOST_AFTER_S = 1.0
"""A batch that an idle worker has not answered for so long never reached it."""


@dataclass(frozen=True, slots=True)
class Batch:
    worker: Holder
    """Who has it, whatever the mode is by now."""
    mode: Mode
    sent_s: float
    chunks: tuple[tuple[SequenceId, int], ...]
    """SequenceState and tokens."""
    context_tokens: int


class PrefillDispatcher:
    def __init__(self, state: CoordinatorState) -> None:
        self._state = state
        self._batches: dict[int, Batch] = {}
        self._next = 1

    @property
    def batches(self) -> int:
        """With workers, unanswered."""
        return len(self._batches)

    def batches_with(self, role: Role) -> int:
        return sum(batch.worker.role is role for batch in self._batches.values())

    def has_room(self, mode: Mode) -> bool:
        """Whether a batch can be given out under that mode. Those given under another one end where they are."""
        role = computes_prompts(mode)
        return self._state.ready_worker(role) is not None and self.batches_with(role) < PLANS_AHEAD

    def give_out(self, chunks: Iterable[Chunk], mode: Mode = Mode.SPLIT, step_tokens: int | None = None) -> None:
        """Sends one batch; `step_tokens` as a plan's. Sequences that took part in a worker's death are sent one by one,
        to learn whose fault."""
        worker = self._state.ready_worker(computes_prompts(mode))
        if worker is None:
            return
        message = wk.PrefillBatch(batch=self._next, step_tokens=step_tokens or 0)
        given: list[tuple[SequenceId, int]] = []
        context = 0
        now = self._state.clock.now()
        for chunk in self._one_suspect_at_most(chunks):
            sequence = self._state.requests.get(chunk.sequence)
            if sequence is None or not self._lease(sequence, worker):
                continue
            message.chunks.append(_chunk_to_wire(sequence, chunk.tokens))
            given.append((chunk.sequence, chunk.tokens))
            context += sequence.computed + chunk.tokens
            sequence.stage = Stage.PREFILLING
            sequence.in_flight = chunk.tokens
            if sequence.prefill_start_s is None:
                sequence.prefill_start_s = now
        if not given:
            return
        if not self.batches_with(worker.role) and not self._decodes(worker):
            worker.progress_s = now
        self._batches[self._next] = Batch(worker.holder, mode, now, tuple(given), context)
        self._next += 1
        self._state.transport.to_worker(worker.incarnation, wk.ToWorker(prefill=message))

    def _decodes(self, worker: Worker) -> bool:
        return worker.role is Role.DECODE and any(True for _ in self._state.requests.sequences(Stage.DECODING))

    def _one_suspect_at_most(self, chunks: Iterable[Chunk]) -> Iterable[Chunk]:
        # Those that are ready come first: they hold pages, for want of which a prompt might try again and again.
        suspects = self._state.requests.suspect(Stage.PREFILLING, Stage.READY, Stage.DECODING)
        for chunk in chunks:
            sequence = self._state.requests.get(chunk.sequence)
            if sequence is None:
                continue
            if sequence.strikes:
                if suspects:
                    continue
                suspects = True
            yield chunk

    def _lease(self, sequence: SequenceState, worker: Worker) -> bool:
        """Sees that the sequence has a lease and that it is that worker's. The sequence waits, so that nothing is
        computed on its pages, whoever computed its last chunk and holds them."""
        pages = self._state.pages
        if sequence.lease is None:
            try:
                self._state.requests.give_lease(sequence, pages.open(worker.holder))
            except NoLease:
                return False
            return True
        holder = pages.holder(sequence.lease)
        if holder is not None and holder != worker.holder:
            with contextlib.suppress(StaleLease):  # it answers that the chunk is gone
                pages.hand_over(sequence.lease, holder, worker.holder)
        return True

    def done(self, worker: Worker, message: wk.PrefillDone) -> None:
        """Takes the answer to a batch of that worker's; a second one to the same batch has no effect."""
        batch = self._batches.get(message.batch)
        if batch is None or batch.worker != worker.holder:
            return
        del self._batches[message.batch]
        state, now = self._state, self._state.clock.now()
        computed = 0
        for chunk in message.chunks:
            sequence = state.requests.by_lease(chunk.lease)
            if sequence is None or sequence.stage is not Stage.PREFILLING:
                if sequence is None:
                    state.release(chunk.lease)  # its request ended while the worker computed
                continue
            if chunk.outcome == wk.CHUNK_OUTCOME_COMPUTED:
                computed += sequence.in_flight
            self._take(sequence, chunk, now)
        if computed:
            step = Step(
                Phase.PREFILL,
                now,
                message.seconds,
                len(batch.chunks),
                computed,
                batch.context_tokens,
                state.shares,
                batch.mode,
            )
            state.observations.step(step)
            state.metrics.prompt_tokens.inc(computed)

    def _take(self, sequence: SequenceState, chunk: wk.ChunkDone, now: float) -> None:
        sequence.stage, sequence.in_flight = Stage.WAITING, 0
        if chunk.outcome == wk.CHUNK_OUTCOME_COMPUTED:
            sequence.computed = chunk.computed
            sequence.strikes = 0
            if chunk.HasField("sampled"):
                self._sampled(sequence, chunk.sampled, now)
        elif chunk.outcome == wk.CHUNK_OUTCOME_GONE:
            self._state.requests.start_over(sequence)
        elif chunk.outcome == wk.CHUNK_OUTCOME_FAILED:
            log.error("sequence failed", request_id=sequence.entry.request.request_id, error=chunk.error)
            self._state.end(sequence.entry, InternalError(chunk.error))
        # CHUNK_OUTCOME_NO_ROOM: it waits for pages, with those that it has

    def _sampled(self, sequence: SequenceState, sampled: wk.Sampled, now: float) -> None:
        state = self._state
        end = end_from_wire(sampled.end) if sampled.HasField("end") else None
        logprob = logprob_from_wire(sampled.logprob) if sampled.HasField("logprob") else None
        previous_s = sequence.last_token_s
        try:
            new = state.requests.record(sequence, sampled.position, sampled.token, now)
        except Gap:
            state.retire(sequence)
            state.requests.start_over(sequence)
            return
        if not new:
            return
        state.transport.delta(sequence.entry.ticket, sequence.last_delta(logprob, end))
        state.metrics.generation_tokens.inc()
        if sampled.position == 0:
            request = sequence.entry.request
            ttft = now - sequence.entry.arrival_s
            state.observations.first_token(FirstToken(now, ttft, len(request.prompt), request.slo))
            state.metrics.ttft.observe(ttft)
        else:
            state.gap(now, now - previous_s)
        if end is not None:
            state.retire(sequence)
            close(state, sequence, end)
            return
        # From here to the decode worker's adoption the coordinator holds the pages: exactly one owner at each step.
        lease = sequence.lease
        holder = state.pages.holder(lease) if lease is not None else None
        if lease is None or holder is None:
            state.requests.start_over(sequence)
            return
        state.pages.hand_over(lease, holder, COORDINATOR)
        sequence.stage = Stage.READY

    def worker_lost(self, worker: Worker) -> list[SequenceState]:
        """What was with it waits again, with the KV that was computed before; those sequences."""
        lost = [batch for batch in self._batches.values() if batch.worker == worker.holder]
        self._batches = {n: batch for n, batch in self._batches.items() if batch.worker != worker.holder}
        return self._wait_again(s for batch in lost for s, _ in batch.chunks)

    def forget(self) -> None:
        """The resident is gone, and with it what the batches were for."""
        self._batches.clear()

    def reconcile(self, worker: Worker, answered_through: int, idle: bool) -> None:
        """Finds batches of that worker's whose message, or whose answer, was lost. `idle`: it has none."""
        now = self._state.clock.now()
        for number, batch in list(self._batches.items()):
            if batch.worker != worker.holder:
                continue
            if number <= answered_through or (idle and now - batch.sent_s > LOST_AFTER_S):
                log.warning("a prefill batch was lost and is planned again", batch=number)
                del self._batches[number]
                self._wait_again([s for s, _ in batch.chunks])

    def _wait_again(self, numbers: Iterable[SequenceId]) -> list[SequenceState]:
        found = []
        for number in numbers:
            sequence = self._state.requests.get(number)
            if sequence is not None and sequence.stage is Stage.PREFILLING:
                sequence.stage, sequence.in_flight = Stage.WAITING, 0
                found.append(sequence)
        return found


def computes_prompts(mode: Mode) -> Role:
    return Role.DECODE if mode is Mode.MIXED else Role.PREFILL


def _chunk_to_wire(sequence: SequenceState, tokens: int) -> wk.Chunk:
    last = sequence.computed + tokens == sequence.to_compute
    return wk.Chunk(
        lease=sequence.lease,
        request_id=sequence.entry.request.request_id,
        start=sequence.computed,
        tokens=sequence.tokens(sequence.computed, tokens),
        continuation=continuation_to_wire(sequence) if last else None,
        prompt_tokens=len(sequence.entry.request.prompt),
    )


def continuation_to_wire(sequence: SequenceState) -> wk.Continuation:
    request = sequence.entry.request
    return wk.Continuation(
        sampling=sampling_to_wire(sequence.sampling),
        stopping=stopping_to_wire(request.stopping),
        output=sequence.output,
        prompt=request.prompt if sequence.sampling.penalised else (),
    )
