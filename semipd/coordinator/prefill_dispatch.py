"""Sends prefill batches to the worker that executes them and applies the results.

That is the prefill worker, or in mixed batches the decode worker.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from dataclasses import dataclass

import structlog

from semipd.coordinator.requests import SequenceState, Stage, TokenGap
from semipd.coordinator.state import CoordinatorState, Worker
from semipd.coordinator.worker_messages import chunk_to_wire
from semipd.core.config import PLANS_AHEAD
from semipd.core.errors import InternalError
from semipd.core.partition import Mode, Phase
from semipd.core.plan import Chunk
from semipd.core.snapshot import FirstToken, SequenceId, Step
from semipd.internal.v1 import worker_pb2 as wk
from semipd.memory.account import COORDINATOR, Holder, Role
from semipd.memory.errors import NoLease, StaleLease
from semipd.wire.codec import end_from_wire, logprob_from_wire

log = structlog.get_logger()

BATCH_LOST_AFTER_S = 1.0
"""Seconds without an answer after which a batch is known not to have reached a worker that is idle."""


@dataclass(frozen=True, slots=True)
class SentBatch:
    """A prefill batch that a worker has not answered yet."""

    worker: Holder
    """The worker that has it. A change of mode does not move it."""
    mode: Mode
    sent_s: float
    chunks: tuple[tuple[SequenceId, int], ...]
    """Sequence and number of tokens of each chunk."""
    context_tokens: int


class PrefillDispatcher:
    """Keeps account of the prefill batches that are with workers."""

    def __init__(self, state: CoordinatorState) -> None:
        self._state = state
        self._batches: dict[int, SentBatch] = {}
        self._next = 1

    @property
    def batches(self) -> int:
        """Batches that are with workers and not answered."""
        return len(self._batches)

    def batches_with(self, role: Role) -> int:
        return sum(batch.worker.role is role for batch in self._batches.values())

    def has_room(self, mode: Mode) -> bool:
        """Returns whether another batch can be sent under that mode. Batches sent under another mode end where they
        are."""
        role = computes_prompts(mode)
        return self._state.ready_worker(role) is not None and self.batches_with(role) < PLANS_AHEAD

    def send(self, chunks: Iterable[Chunk], mode: Mode = Mode.SPLIT, step_tokens: int | None = None) -> None:
        """Sends one batch. `step_tokens` is the plan's.

        Sequences that took part in a worker's death are sent one at a time, to find the one that causes it.
        """
        worker = self._state.ready_worker(computes_prompts(mode))
        if worker is None:
            return
        message = wk.PrefillBatch(batch=self._next, step_tokens=step_tokens or 0)
        sent: list[tuple[SequenceId, int]] = []
        context = 0
        now = self._state.clock.now()
        for chunk in self._one_suspect_at_most(chunks):
            sequence = self._state.requests.get(chunk.sequence)
            if sequence is None or not self._lease(sequence, worker):
                continue
            message.chunks.append(chunk_to_wire(sequence, chunk.tokens))
            sent.append((chunk.sequence, chunk.tokens))
            context += sequence.computed + chunk.tokens
            sequence.stage = Stage.PREFILLING
            sequence.in_flight = chunk.tokens
            if sequence.prefill_start_s is None:
                sequence.prefill_start_s = now
        if not sent:
            return
        if not self.batches_with(worker.role) and not self._decodes(worker):
            worker.progress_s = now
        self._batches[self._next] = SentBatch(worker.holder, mode, now, tuple(sent), context)
        self._next += 1
        self._state.transport.to_worker(worker.incarnation, wk.ToWorker(prefill=message))

    def _decodes(self, worker: Worker) -> bool:
        return worker.role is Role.DECODE and self._state.requests.any_decoding()

    def _one_suspect_at_most(self, chunks: Iterable[Chunk]) -> Iterable[Chunk]:
        # A ready suspect goes first: it holds pages, and a prompt that lacks pages might be tried again and again.
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
        """Makes sure that the sequence has a lease and that the worker holds it. Returns False if no lease is left.

        The sequence is waiting, so no worker computes on its pages, even if one still holds them from the last chunk.
        """
        pages = self._state.pages
        if sequence.lease is None:
            try:
                self._state.requests.give_lease(sequence, pages.open(worker.holder))
            except NoLease:
                return False
            return True
        holder = pages.holder(sequence.lease)
        if holder is not None and holder != worker.holder:
            with contextlib.suppress(StaleLease):  # the worker will answer that the chunk is gone
                pages.hand_over(sequence.lease, holder, worker.holder)
        return True

    def on_prefill_done(self, worker: Worker, message: wk.PrefillDone) -> None:
        """Applies a worker's answer to one of its batches. A second answer to the same batch has no effect."""
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
            self._apply(sequence, chunk, now)
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

    def _apply(self, sequence: SequenceState, chunk: wk.ChunkDone, now: float) -> None:
        sequence.stage, sequence.in_flight = Stage.WAITING, 0
        if chunk.outcome == wk.CHUNK_OUTCOME_COMPUTED:
            sequence.computed = chunk.computed
            sequence.strikes = 0
            if chunk.HasField("sampled"):
                self._on_sampled(sequence, chunk.sampled, now)
        elif chunk.outcome == wk.CHUNK_OUTCOME_GONE:
            self._state.requests.start_over(sequence)
        elif chunk.outcome == wk.CHUNK_OUTCOME_FAILED:
            log.error("sequence failed", request_id=sequence.entry.request.request_id, error=chunk.error)
            self._state.fail(sequence.entry, InternalError(chunk.error))
        # CHUNK_OUTCOME_NO_ROOM: the sequence keeps its pages and waits for more

    def _on_sampled(self, sequence: SequenceState, sampled: wk.Sampled, now: float) -> None:
        state = self._state
        end = end_from_wire(sampled.end) if sampled.HasField("end") else None
        logprob = logprob_from_wire(sampled.logprob) if sampled.HasField("logprob") else None
        previous_s = sequence.last_token_s
        try:
            new = state.requests.record(sequence, sampled.position, sampled.token, now)
        except TokenGap:
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
            state.record_gap(now, now - previous_s)
        if end is not None:
            state.retire(sequence)
            state.finish(sequence, end)
            return
        # From here until the decode worker adopts it, the coordinator holds the pages: they have one owner at each
        # step.
        lease = sequence.lease
        holder = state.pages.holder(lease) if lease is not None else None
        if lease is None or holder is None:
            state.requests.start_over(sequence)
            return
        state.pages.hand_over(lease, holder, COORDINATOR)
        sequence.stage = Stage.READY

    def on_worker_lost(self, worker: Worker) -> list[SequenceState]:
        """Makes the sequences that were in that worker's batches wait again, and returns them. The KV of their earlier
        chunks is kept."""
        lost = [batch for batch in self._batches.values() if batch.worker == worker.holder]
        self._batches = {n: batch for n, batch in self._batches.items() if batch.worker != worker.holder}
        return self._wait_again(s for batch in lost for s, _ in batch.chunks)

    def forget(self) -> None:
        """Forgets all batches: the resident is gone, and with it the KV that they were to fill."""
        self._batches.clear()

    def on_heartbeat(self, worker: Worker, answered_through: int, idle: bool) -> None:
        """Finds that worker's batches whose message or answer was lost, and makes their sequences wait again.

        `answered_through` is the highest batch that it has answered. `idle`: it has no batch.
        """
        now = self._state.clock.now()
        for number, batch in list(self._batches.items()):
            if batch.worker != worker.holder:
                continue
            if number <= answered_through or (idle and now - batch.sent_s > BATCH_LOST_AFTER_S):
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
    """Returns the role of the worker that computes prompts under that mode."""
    return Role.DECODE if mode is Mode.MIXED else Role.PREFILL
