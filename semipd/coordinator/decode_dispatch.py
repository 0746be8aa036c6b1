"""Hands sequences over to the decode worker and applies the results of its steps."""

from __future__ import annotations

from collections.abc import Iterable

import structlog

from semipd.coordinator.requests import SequenceState, Stage, TokenGap
from semipd.coordinator.state import CoordinatorState
from semipd.coordinator.worker_messages import adopt_to_wire
from semipd.core.errors import InternalError
from semipd.core.partition import Phase
from semipd.core.snapshot import SequenceId, Step
from semipd.internal.v1 import worker_pb2 as wk
from semipd.memory.account import COORDINATOR, Role
from semipd.memory.errors import StaleLease
from semipd.wire.codec import end_from_wire, logprob_from_wire

log = structlog.get_logger()

ADOPT_LOST_AFTER_S = 5.0
"""Seconds without word of an Adopt, or of a later one, after which that Adopt is known not to have reached the
worker."""


class DecodeDispatcher:
    """Keeps account of the sequences that are in the decode batch."""

    def __init__(self, state: CoordinatorState) -> None:
        self._state = state
        self._adopts = 0
        self._adopted: dict[SequenceId, tuple[int, float]] = {}
        """Ordinal of the Adopt of each sequence in the batch, and when it was sent."""
        self.limit = state.config.max_running
        """Sequences in the batch at once, as the policy wants it."""
        self._to_hold: frozenset[SequenceId] = frozenset()
        """The sequences that the plan holds back."""
        self._held: frozenset[SequenceId] = frozenset()
        """The sequences that are marked as held."""
        self._told_held: frozenset[int] = frozenset()
        """The leases that the worker leaves out of its steps, as far as is known."""

    def hand_over_ready(self) -> None:
        """Hands over the sequences that are ready, by priority and arrival, while the batch has room."""
        state = self._state
        worker = state.ready_worker(Role.DECODE)
        if worker is None:
            return
        ready = [s for s in state.requests.sequences(Stage.READY) if not s.held]
        ready.sort(key=lambda s: (-s.entry.request.priority, s.number))
        if not ready:
            return
        suspects = state.requests.suspect(Stage.PREFILLING, Stage.DECODING)
        room = min(self.limit, state.config.max_running) - state.requests.count(Stage.DECODING)
        if not state.requests.any_decoding():
            worker.progress_s = state.clock.now()
        for sequence in ready:
            if room <= 0:
                return
            if sequence.strikes:
                # It took part in a worker's death. One such sequence at a time, to find the one that causes it.
                if suspects:
                    continue
                suspects = True
            if self._hand_over(sequence, worker.incarnation):
                room -= 1

    def _hand_over(self, sequence: SequenceState, incarnation: int) -> bool:
        """Returns False where the pages are gone; then the sequence is computed again."""
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
        adopt = adopt_to_wire(sequence, self._adopts)
        sequence.stage = Stage.DECODING
        self._adopted[sequence.number] = (self._adopts, state.clock.now())
        state.transport.to_worker(incarnation, wk.ToWorker(adopt=adopt))
        return True

    # --- what a plan says of running sequences -----------------------------------------------------------------------

    def preempt(self, sequences: Iterable[SequenceId]) -> None:
        """Takes the pages of running sequences away; they are computed again later. The decode worker is told to drop
        those that are in its batch."""
        for number in sequences:
            sequence = self._state.requests.get(number)
            if sequence is not None and sequence.stage in (Stage.READY, Stage.DECODING):
                self._adopted.pop(number, None)
                self._state.preempt(sequence)

    def hold(self, sequences: frozenset[SequenceId]) -> None:
        """Sets the running sequences that are held back, until the next call. `update_held` makes it so."""
        self._to_hold = sequences

    def update_held(self) -> None:
        """Marks the sequences that are held back, and tells the decode worker where they have changed.

        Ready ones are not handed over. Those in the batch keep their place and their pages, and no step takes them
        along. Of sequences that took part in a worker's death, one at a time goes on.
        """
        if not (self._to_hold or self._held or self._told_held):
            return
        state, held, leases = self._state, set(), set()
        computed = state.requests.sequences(Stage.PREFILLING, Stage.DECODING)
        suspects = any(s.strikes and not s.held and s.number not in self._to_hold for s in computed)
        for sequence in state.requests.sequences(Stage.READY, Stage.DECODING):
            hold = sequence.number in self._to_hold
            if sequence.held and not hold and sequence.strikes and sequence.stage is Stage.DECODING:
                hold, suspects = suspects, True
            sequence.held = hold
            if hold:
                held.add(sequence.number)
                if sequence.stage is Stage.DECODING and sequence.lease is not None:
                    leases.add(sequence.lease)
        self._held = frozenset(held)
        worker = state.ready_worker(Role.DECODE)
        if worker is not None and leases != self._told_held:
            self._told_held = frozenset(leases)
            state.transport.to_worker(worker.incarnation, wk.ToWorker(hold=wk.Hold(leases=sorted(leases))))

    # --- what the worker says ----------------------------------------------------------------------------------------

    def on_step_done(self, message: wk.StepDone) -> None:
        """Applies the results of one decode step. Rows of sequences that are no longer in the batch have no effect."""
        state, now = self._state, self._state.clock.now()
        ends = {e.row: end_from_wire(e.end) for e in message.ends}
        logprobs = {p.row: logprob_from_wire(p.logprob) for p in message.logprobs}
        rows = zip(message.leases, message.tokens, message.positions, strict=True)
        by_lease, record, send_token = state.requests.by_lease, state.requests.record, state.transport.token
        gaps: dict[float, int] = {}
        """Number of rows by the time of their previous token; most rows had it with the previous step."""
        for row, (lease, token, position) in enumerate(rows):
            sequence = by_lease(lease)
            if sequence is None or sequence.stage is not Stage.DECODING:
                continue
            previous_s = sequence.last_token_s
            try:
                new = record(sequence, position, token, now)
            except TokenGap:
                self._compute_again(sequence)
                continue
            if not new:
                continue
            end, logprob = ends.get(row), logprobs.get(row)
            if end is None and logprob is None:
                send_token(sequence.entry.ticket, sequence.index, position, token)
            else:
                state.transport.delta(sequence.entry.ticket, sequence.last_delta(logprob, end))
            gaps[previous_s] = gaps.get(previous_s, 0) + 1
            if end is not None:
                state.requests.take_lease(sequence)  # the worker has released it
                self._adopted.pop(sequence.number, None)
                state.finish(sequence, end)
        for previous_s, sequences in gaps.items():
            state.record_gap(now, now - previous_s, sequences)
        if message.leases:
            state.metrics.generation_tokens.inc(len(message.leases))
            count = len(message.leases)
            state.observations.step(
                Step(Phase.DECODE, now, message.seconds, count, count, message.context_tokens, state.shares, state.mode)
            )
        self._apply_exceptions(message)

    def _apply_exceptions(self, message: wk.StepDone) -> None:
        state = self._state
        for lease in message.preempted:
            sequence = state.requests.by_lease(lease)
            if sequence is not None:
                state.count_preemption(sequence)
                self._adopted.pop(sequence.number, None)
                state.requests.start_over(sequence)
        for lease in message.dropped:
            sequence = state.requests.by_lease(lease)
            if sequence is not None and sequence.stage is Stage.DECODING:  # we did not ask for it: its pages were gone
                self._adopted.pop(sequence.number, None)
                state.requests.start_over(sequence)
        for failure in message.failures:
            sequence = state.requests.by_lease(failure.lease)
            if sequence is not None:
                log.error("sequence failed", request_id=sequence.entry.request.request_id, error=failure.error)
                state.requests.take_lease(sequence)  # the worker has released it
                state.fail(sequence.entry, InternalError(failure.error))
        if message.starved:
            state.relieve()

    def _compute_again(self, sequence: SequenceState) -> None:
        """Drops whatever the worker still has of a sequence, and starts it over: a message about it was lost."""
        log.warning("a decode message was lost", request_id=sequence.entry.request.request_id)
        self._adopted.pop(sequence.number, None)
        self._state.retire(sequence)
        self._state.requests.start_over(sequence)

    def on_heartbeat(self, leases: frozenset[int], adopted_through: int, held: frozenset[int] = frozenset()) -> None:
        """Compares the batch as the coordinator knows it with the leases that the worker says it has.

        Leases that nobody knows are dropped; a sequence that the worker should have and has not is computed again.
        `adopted_through` is the highest ordinal of an Adopt that the worker has heard. `held` are the leases that it
        leaves out of its steps; where they are not what it was told, `update_held` tells it again.
        """
        self._told_held = held
        state, now = self._state, self._state.clock.now()
        unknown = [lease for lease in leases if state.requests.by_lease(lease) is None]
        worker = state.workers.get(Role.DECODE)
        if unknown and worker is not None:
            state.transport.to_worker(worker.incarnation, wk.ToWorker(drop=wk.Drop(leases=unknown)))
        for number, (ordinal, sent_s) in list(self._adopted.items()):
            sequence = state.requests.get(number)
            if sequence is None or sequence.stage is not Stage.DECODING:
                del self._adopted[number]
            elif sequence.lease not in leases and (ordinal <= adopted_through or now - sent_s > ADOPT_LOST_AFTER_S):
                self._compute_again(sequence)

    def on_worker_lost(self) -> list[SequenceState]:
        """Takes back the sequences of the worker's batch, and returns them.

        A sequence whose pages the coordinator holds now is ready again. A sequence whose pages the worker had released
        without our hearing of it is computed again. To be called after the worker's leases were reassigned.
        """
        state = self._state
        self._adopted.clear()
        self._told_held = frozenset()
        found = list(state.requests.sequences(Stage.DECODING))
        for sequence in found:
            if sequence.lease is not None and state.pages.holder(sequence.lease) == COORDINATOR:
                sequence.stage = Stage.READY
            else:
                state.requests.start_over(sequence)
        return found
