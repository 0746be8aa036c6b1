"""Prefill batches as the coordinator sends them: pages for each chunk, and the answer for each.

Both workers compute prefill batches, decode in mixed batches.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import structlog

from semipd.core.config import pages_for
from semipd.engine.engine import PrefillItem, SampledToken, SamplingInput, SequenceFailure, TokenOutcome
from semipd.internal.v1 import worker_pb2 as wk
from semipd.memory.account import Holder, PageAccount
from semipd.memory.errors import StaleLease
from semipd.wire.codec import end_to_wire, logprob_to_wire, sampling_from_wire, stopping_from_wire

log = structlog.get_logger()

TOO_LARGE = "the device has not enough memory for this prompt"


@dataclass(slots=True)
class AllocatedBatch:
    """A prefill batch whose chunks have their pages. Chunks that got none are answered already."""

    batch: wk.PrefillBatch
    answers: list[wk.ChunkDone]
    """One for each chunk."""
    items: list[PrefillItem]
    """The chunks that are to be computed."""
    places: list[int]
    """The items' places among the chunks."""

    def fill(self, index: int, outcome: TokenOutcome | None) -> None:
        """Writes the outcome of an item into its answer. None: the item is computed, and was not to be sampled."""
        item, place = self.items[index], self.places[index]
        answer = self.answers[place]
        log.debug(
            "prefilled", request_id=self.batch.chunks[place].request_id, start=item.start, tokens=len(item.tokens)
        )
        if isinstance(outcome, SequenceFailure):
            answer.outcome = wk.CHUNK_OUTCOME_FAILED
            answer.error = outcome.error
            return
        answer.outcome = wk.CHUNK_OUTCOME_COMPUTED
        answer.computed = item.start + len(item.tokens)
        if outcome is not None:
            answer.sampled.CopyFrom(_sampled_to_wire(outcome))

    def fill_all(self, outcomes: Sequence[TokenOutcome | None]) -> None:
        for index, outcome in enumerate(outcomes):
            self.fill(index, outcome)


class PrefillBatchTracker:
    """Allocates the pages of prefill batches and makes their answers.

    It remembers which leases were dropped until the batch that they are in is answered.
    """

    def __init__(self, account: PageAccount, me: Holder) -> None:
        self._account = account
        self._me = me
        self._dropped: set[int] = set()
        self.answered = 0
        """The highest number of a batch that is answered; so are all that came before it."""

    def drop(self, leases: Iterable[int]) -> None:
        """Makes chunks of these leases that have no pages yet be answered as gone. Their pages are the sender's
        matter."""
        self._dropped.update(leases)

    def allocate(self, batch: wk.PrefillBatch) -> AllocatedBatch:
        """Takes the pages that the chunks lack. All items of the answer may be computed in one forward pass."""
        allocated = AllocatedBatch(batch, [wk.ChunkDone(lease=chunk.lease) for chunk in batch.chunks], [], [])
        for place, (chunk, answer) in enumerate(zip(batch.chunks, allocated.answers, strict=True)):
            item = self._item(chunk, answer)
            if item is not None:
                allocated.items.append(item)
                allocated.places.append(place)
        return allocated

    def answer(self, allocated: AllocatedBatch, seconds: float) -> wk.FromWorker:
        """Returns the message that answers all chunks of a batch. Batches are answered in the order in which they came.

        `seconds`: how long the batch was computed.
        """
        self._dropped.difference_update(chunk.lease for chunk in allocated.batch.chunks)
        self.answered = max(self.answered, allocated.batch.batch)
        done = wk.PrefillDone(batch=allocated.batch.batch, chunks=allocated.answers, seconds=seconds)
        return wk.FromWorker(prefill_done=done)

    def _item(self, chunk: wk.Chunk, answer: wk.ChunkDone) -> PrefillItem | None:
        """Returns the chunk with its pages, or None, and then the answer says why."""
        if chunk.lease in self._dropped:
            answer.outcome = wk.CHUNK_OUTCOME_GONE
            return None
        end = chunk.start + len(chunk.tokens)
        try:
            table = self._account.table(chunk.lease)
            missing = pages_for(end) - len(table)
            if missing > 0:
                if self._account.take(chunk.lease, missing, self._me) is None:
                    answer.outcome = wk.CHUNK_OUTCOME_NO_ROOM
                    return None
                table = self._account.table(chunk.lease)
        except StaleLease:
            answer.outcome = wk.CHUNK_OUTCOME_GONE
            return None
        sampling = sampling_input_from_wire(chunk.continuation) if chunk.HasField("continuation") else None
        return PrefillItem(chunk.lease, list(chunk.tokens), chunk.start, table, sampling, chunk.prompt_tokens)


def sampling_input_from_wire(m: wk.Continuation) -> SamplingInput:
    return SamplingInput(
        params=sampling_from_wire(m.sampling),
        stopping=stopping_from_wire(m.stopping),
        prompt=tuple(m.prompt),
        output=tuple(m.output),
    )


def _sampled_to_wire(s: SampledToken) -> wk.Sampled:
    return wk.Sampled(
        token=s.token,
        position=s.position,
        logprob=logprob_to_wire(s.logprob) if s.logprob else None,
        end=end_to_wire(s.end) if s.end else None,
    )
