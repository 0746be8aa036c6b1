"""Prompt chunks as the coordinator sends them: their pages, and the answer for each. Both workers compute such."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import structlog

from semipd.core.config import pages_for
from semipd.engine.engine import PrefillItem, SequenceFailure, TokenOutcome
from semipd.internal.v1 import worker_pb2 as wk
from semipd.memory.account import Holder, PageAccount
from semipd.memory.errors import StaleLease
from semipd.workers.sampling_messages import sampled_to_wire, sampling_input_from_wire

log = structlog.get_logger()

TOO_LARGE = "the device has not enough memory for this prompt"


@dataclass(slots=True)
class Opened:
    """A batch whose chunks have their pages. Those that have none are answered already."""

    batch: wk.PrefillBatch
    answers: list[wk.ChunkDone]
    items: list[PrefillItem]
    """What there is to compute."""
    places: list[int]
    """Of the items among the chunks."""

    def fill(self, index: int, outcome: TokenOutcome | None) -> None:
        """What came of an item, into its answer."""
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
            answer.sampled.CopyFrom(sampled_to_wire(outcome))

    def fill_all(self, outcomes: Sequence[TokenOutcome | None]) -> None:
        for index, outcome in enumerate(outcomes):
            self.fill(index, outcome)


class Chunks:
    """Opens batches, and remembers what was dropped until the batch that it was in is answered."""

    def __init__(self, account: PageAccount, me: Holder) -> None:
        self._account = account
        self._me = me
        self._dropped: set[int] = set()
        self.answered = 0
        """The highest batch."""

    def drop(self, leases: Iterable[int]) -> None:
        """Chunks of these that are still to be opened are not computed; whoever dropped them sees to the pages."""
        self._dropped.update(leases)

    def open(self, batch: wk.PrefillBatch) -> Opened:
        """Every chunk that has its pages, for one forward pass."""
        opened = Opened(batch, [wk.ChunkDone(lease=chunk.lease) for chunk in batch.chunks], [], [])
        for place, (chunk, answer) in enumerate(zip(batch.chunks, opened.answers, strict=True)):
            item = self._item(chunk, answer)
            if item is not None:
                opened.items.append(item)
                opened.places.append(place)
        return opened

    def done(self, opened: Opened, seconds: float) -> wk.FromWorker:
        """The answer for all chunks of a batch. Batches are answered in the order in which they came."""
        self._dropped.difference_update(chunk.lease for chunk in opened.batch.chunks)
        self.answered = max(self.answered, opened.batch.batch)
        done = wk.PrefillDone(batch=opened.batch.batch, chunks=opened.answers, seconds=seconds)
        return wk.FromWorker(prefill_done=done)

    def _item(self, chunk: wk.Chunk, answer: wk.ChunkDone) -> PrefillItem | None:
        """The chunk with its pages, or None, and then the answer says why."""
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
