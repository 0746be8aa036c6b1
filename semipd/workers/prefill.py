"""The prefill worker: runs the batches that the coordinator sends, one plan ahead of itself."""

from __future__ import annotations

import time
from collections import deque

import structlog
import torch

from semipd.core.config import PAGE_SIZE
from semipd.engine.engine import Engine, Failed, PrefillItem, Sampled
from semipd.internal.v1 import worker_pb2 as wk
from semipd.memory.account import Holder, PageAccount
from semipd.memory.errors import StaleLease
from semipd.workers.draw import draw_from_wire, sampled_to_wire
from semipd.workers.link import HEARTBEAT_S, Link, Pulse
from semipd.workers.shares import Shares

log = structlog.get_logger()


class PrefillWorker:
    def __init__(self, link: Link, engine: Engine, account: PageAccount, me: Holder, shares: Shares) -> None:
        self._link = link
        self._engine = engine
        self._account = account
        self._me = me
        self._shares = shares
        self._plans: deque[wk.PrefillBatch] = deque()
        self._dropped: set[int] = set()
        self._answered = 0
        self._pulse = Pulse(link, self._describe)
        self._over = False

    def run(self) -> None:
        """Until it is told to end."""
        while True:
            self._hear(wait_s=0.0 if self._plans else HEARTBEAT_S)
            if self._over:
                return
            if self._plans:
                self._compute(self._plans.popleft())
            self._pulse.report()

    def _hear(self, wait_s: float) -> None:
        message = self._link.receive(wait_s)
        while message is not None:
            match message.WhichOneof("message"):
                case "prefill":
                    self._plans.append(message.prefill)
                case "drop":
                    self._dropped.update(message.drop.leases)
                case "set_shares":
                    self._shares.compute_on(message.set_shares.cpus)
                    self._link.send(wk.FromWorker(shares_applied=wk.SharesApplied(change=message.set_shares.change)))
                case "shutdown":
                    self._over = True
            message = self._link.receive()

    def _compute(self, batch: wk.PrefillBatch) -> None:
        """Computes every chunk that has its pages, in one forward pass, and answers for all."""
        start = time.perf_counter()
        answers = [wk.ChunkDone(lease=chunk.lease) for chunk in batch.chunks]
        items: list[PrefillItem] = []
        places: list[int] = []
        for place, (chunk, answer) in enumerate(zip(batch.chunks, answers, strict=True)):
            item = self._item(chunk, answer)
            if item is not None:
                items.append(item)
                places.append(place)
        for place, item, outcome in zip(places, items, self._prefill(items), strict=True):
            _fill(answers[place], item, outcome)
            log.debug("prefilled", request_id=batch.chunks[place].request_id, start=item.start, tokens=len(item.tokens))
        self._dropped.difference_update(chunk.lease for chunk in batch.chunks)
        self._answered = max(self._answered, batch.batch)
        done = wk.PrefillDone(batch=batch.batch, chunks=answers, seconds=time.perf_counter() - start)
        self._link.send(wk.FromWorker(prefill_done=done))

    def _item(self, chunk: wk.Chunk, answer: wk.ChunkDone) -> PrefillItem | None:
        """The chunk with its pages, or None, and then the answer says why."""
        if chunk.lease in self._dropped:
            answer.outcome = wk.CHUNK_OUTCOME_GONE
            return None
        end = chunk.start + len(chunk.tokens)
        try:
            table = self._account.table(chunk.lease)
            missing = -(-end // PAGE_SIZE) - len(table)
            if missing > 0:
                if self._account.take(chunk.lease, missing, self._me) is None:
                    answer.outcome = wk.CHUNK_OUTCOME_NO_ROOM
                    return None
                table = self._account.table(chunk.lease)
        except StaleLease:
            answer.outcome = wk.CHUNK_OUTCOME_GONE
            return None
        draw = draw_from_wire(chunk.continuation) if chunk.HasField("continuation") else None
        return PrefillItem(chunk.lease, list(chunk.tokens), chunk.start, table, draw, chunk.prompt_tokens)

    def _prefill(self, items: list[PrefillItem]) -> list[Sampled | Failed | None]:
        """Where memory runs out, the chunks are tried one by one, and who does not fit alone fails alone."""
        if not items:
            return []
        try:
            return self._engine.prefill(items, self._pulse)
        except (torch.OutOfMemoryError, MemoryError) as error:
            if len(items) == 1:
                log.error("out of memory", error=str(error))
                return [Failed("the device has not enough memory for this prompt")]
        return [outcome for item in items for outcome in self._prefill([item])]

    def _describe(self, beat: wk.Heartbeat) -> None:
        beat.answered_through = self._answered
        beat.idle = not self._plans


def _fill(answer: wk.ChunkDone, item: PrefillItem, outcome: Sampled | Failed | None) -> None:
    if isinstance(outcome, Failed):
        answer.outcome = wk.CHUNK_OUTCOME_FAILED
        answer.error = outcome.error
        return
    answer.outcome = wk.CHUNK_OUTCOME_COMPUTED
    answer.computed = item.start + len(item.tokens)
    if outcome is not None:
        answer.sampled.CopyFrom(sampled_to_wire(outcome))
