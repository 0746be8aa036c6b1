"""Hands sequences to the decode worker and hears its steps."""

from __future__ import annotations

import structlog

from semipd.coordinator.admission import close
from semipd.coordinator.prefill_dispatch import continuation_to_wire
from semipd.coordinator.requests import Gap, SequenceState, Stage
from semipd.coordinator.state import CoordinatorState
from semipd.core.errors import InternalError
from semipd.core.partition import Phase
from semipd.core.snapshot import SequenceId, Step
from semipd.internal.v1 import worker_pb2 as wk
from semipd.memory.account import COORDINATOR, Role
from semipd.memory.errors import StaleLease
from semipd.wire.codec import end_from_wire, logprob_from_wire

log = structlog.get_logger()

LOST_AFTER_S = 5.0
"""An Adopt that the worker has not heard of for so long, nor any later one, never reached it."""


class DecodeDispatcher:
    def __init__(self, state: CoordinatorState) -> None:
        self._state = state
        self._adopts = 0
        self._adopted: dict[SequenceId, tuple[int, float]] = {}
        """Of each sequence in the batch: the ordinal of its Adopt, and when it was sent."""
        self.limit = state.config.max_running
        """Sequences at once in the batch, as the policy wants it."""

    def admit(self) -> None:
        """Hands over what is ready, by priority and arrival, while the batch has room."""
        state = self._state
        worker = state.ready_worker(Role.DECODE)
        if worker is None:
            return
        ready = sorted(state.requests.sequences(Stage.READY), key=lambda s: (-s.entry.request.priority, s.number))
        if not ready:
            return
        running = list(state.requests.sequences(Stage.DECODING))
        suspects = state.requests.suspect(Stage.PREFILLING, Stage.DECODING)
        room = min(self.limit, state.config.max_running) - len(running)
        if not running:
            worker.progress_s = state.clock.now()
        for sequence in ready:
            if room <= 0:
                return
            if sequence.strikes:
                # Took part in a worker's death: one such at a time, to learn whose fault it was.
                if suspects:
                    continue
                suspects = True
            if self._hand_over(sequence, worker.incarnation):
                room -= 1

    def _hand_over(self, sequence: SequenceState, incarnation: int) -> bool:
        state, worker = self._state, self._state.workers[Role.DECODE]
        if sequence.lease is None:
            state.requests.start_over(sequence)
            return False
        try:
            state.pages.hand_over(sequence.lease, COORDINATOR, worker.holder)
        except StaleLease:
            state.requests.start_over(sequence)
            return False
        self._adopts += 1
        adopt = wk.Adopt(
            lease=sequence.lease,
            request_id=sequence.entry.request.request_id,
            context=sequence.to_compute - 1,
            continuation=continuation_to_wire(sequence),
            priority=sequence.entry.request.priority,
            sequence=sequence.number,
            ordinal=self._adopts,
        )
        sequence.stage = Stage.DECODING
        self._adopted[sequence.number] = (self._adopts, state.clock.now())
        state.transport.to_worker(incarnation, wk.ToWorker(adopt=adopt))
        return True

    def step(self, message: wk.StepDone) -> None:
        """Takes what one decode step made. Rows of sequences that are no longer in the batch have no effect."""
        state, now = self._state, self._state.clock.now()
        ends = {e.row: end_from_wire(e.end) for e in message.ends}
        logprobs = {p.row: logprob_from_wire(p.logprob) for p in message.logprobs}
        rows = zip(message.leases, message.tokens, message.positions, strict=True)
        by_lease, record, tell = state.requests.by_lease, state.requests.record, state.transport.token
        gaps: dict[float, int] = {}
        """Rows, by when their last token came: that of most with the last step."""
        for row, (lease, token, position) in enumerate(rows):
            sequence = by_lease(lease)
            if sequence is None or sequence.stage is not Stage.DECODING:
                continue
            previous_s = sequence.last_token_s
            try:
                new = record(sequence, position, token, now)
            except Gap:
                self._lost(sequence)
                continue
            if not new:
                continue
            end, logprob = ends.get(row), logprobs.get(row)
            if end is None and logprob is None:
                tell(sequence.entry.ticket, sequence.index, position, token)
            else:
                state.transport.delta(sequence.entry.ticket, sequence.last_delta(logprob, end))
            gaps[previous_s] = gaps.get(previous_s, 0) + 1
            if end is not None:
                state.requests.take_lease(sequence)  # the worker has released it
                self._adopted.pop(sequence.number, None)
                close(state, sequence, end)
        for previous_s, sequences in gaps.items():
            state.gap(now, now - previous_s, sequences)
        if message.leases:
            state.metrics.generation_tokens.inc(len(message.leases))
            count = len(message.leases)
            state.observations.step(
                Step(Phase.DECODE, now, message.seconds, count, count, message.context_tokens, state.shares, state.mode)
            )
        self._exceptions(message)

    def _exceptions(self, message: wk.StepDone) -> None:
        state = self._state
        for lease in message.preempted:
            sequence = state.requests.by_lease(lease)
            if sequence is not None:
                sequence.preemptions += 1
                state.metrics.preemptions.inc()
                self._adopted.pop(sequence.number, None)
                state.requests.start_over(sequence)
        for lease in message.dropped:
            sequence = state.requests.by_lease(lease)
            if sequence is not None and sequence.stage is Stage.DECODING:  # dropped, but not by us: its pages were gone
                self._adopted.pop(sequence.number, None)
                state.requests.start_over(sequence)
        for failure in message.failures:
            sequence = state.requests.by_lease(failure.lease)
            if sequence is not None:
                log.error("sequence failed", request_id=sequence.entry.request.request_id, error=failure.error)
                state.requests.take_lease(sequence)  # the worker has released it
                state.end(sequence.entry, InternalError(failure.error))
        if message.starved:
            relieve(state)

    def _lost(self, sequence: SequenceState) -> None:
        """A message about it was lost: whatever the worker still has of it is dropped, and it is computed again."""
        log.warning("a decode message was lost", request_id=sequence.entry.request.request_id)
        self._adopted.pop(sequence.number, None)
        self._state.retire(sequence)
        self._state.requests.start_over(sequence)

    def reconcile(self, leases: frozenset[int], adopted_through: int) -> None:
        """Compares the batch as we know it with what the worker says that it holds."""
        state, now = self._state, self._state.clock.now()
        unknown = [lease for lease in leases if state.requests.by_lease(lease) is None]
        worker = state.workers.get(Role.DECODE)
        if unknown and worker is not None:
            state.transport.to_worker(worker.incarnation, wk.ToWorker(drop=wk.Drop(leases=unknown)))
        for number, (ordinal, sent_s) in list(self._adopted.items()):
            sequence = state.requests.get(number)
            if sequence is None or sequence.stage is not Stage.DECODING:
                del self._adopted[number]
            elif sequence.lease not in leases and (ordinal <= adopted_through or now - sent_s > LOST_AFTER_S):
                self._lost(sequence)

    def worker_lost(self) -> list[SequenceState]:
        """What was in its batch is ready again, its pages with the coordinator; or is computed again where it had
        released them and we never heard. Those sequences. To be called after the account has seized its leases."""
        state = self._state
        self._adopted.clear()
        found = list(state.requests.sequences(Stage.DECODING))
        for sequence in found:
            if sequence.lease is not None and state.pages.holder(sequence.lease) == COORDINATOR:
                sequence.stage = Stage.READY
            else:
                state.requests.start_over(sequence)
        return found


def relieve(state: CoordinatorState) -> bool:
    """Frees pages for whoever is stuck: takes those of the youngest sequence that holds some and is not computed on."""
    for sequence in sorted(
        state.requests.sequences(Stage.WAITING, Stage.READY), key=lambda s: (s.entry.request.priority, -s.number)
    ):
        if sequence.lease is not None and len(state.pages.table(sequence.lease)):
            state.retire(sequence)
            sequence.preemptions += 1
            state.metrics.preemptions.inc()
            state.requests.start_over(sequence)
            return True
    return False
