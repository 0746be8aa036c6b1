"""Mixed batches in the decode worker: each step takes along chunks of one prefill batch.

This is chunked prefill as in Sarathi-Serve (OSDI 2024, section 4.2). How many tokens keep a step short is the policy's
decision. A batch that is more than a step can take is cut into pieces for several steps.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import structlog
import torch

from semipd.core.chunking import ChunkPiece, split_chunks
from semipd.engine.engine import PrefillItem, SequenceFailure, TokenOutcome
from semipd.engine.pulse import Pulse
from semipd.internal.v1 import worker_pb2 as wk
from semipd.memory.account import Holder, PageAccount
from semipd.workers.backend import DecodeBatch, StepOutcomes
from semipd.workers.chunks import TOO_LARGE, AllocatedBatch, PrefillBatchTracker
from semipd.workers.coordinator_link import CoordinatorLink

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class StepLimits:
    """The most that one decode step can take along of prompts."""

    tokens: int = 2**31
    prompts: int = 2**31


@dataclass(slots=True)
class UnfinishedBatch:
    """A prefill batch whose chunks have their pages, and which is not answered."""

    allocated: AllocatedBatch
    unknown: set[int]
    """Places of the items whose outcome is not known."""
    seconds: float = 0.0
    """Time of the passes that took a part of it along."""

    def fill(self, index: int, outcome: TokenOutcome | None) -> None:
        if index in self.unknown:
            self.unknown.remove(index)
            self.allocated.fill(index, outcome)


@dataclass(frozen=True, slots=True)
class ItemPiece:
    """All of an item of a batch, or a part of it."""

    index: int
    """The item's place in the batch."""
    item: PrefillItem
    last: bool
    """The end of the item is in it."""


@dataclass(slots=True)
class StepPrompts:
    """The pieces that one pass takes along. They are all of one batch."""

    batch: UnfinishedBatch
    pieces: list[ItemPiece]
    start_s: float = 0.0


@dataclass(slots=True)
class _PromptQueues:
    """Batches in the order in which they came, and where their parts are."""

    queued: deque[wk.PrefillBatch] = field(default_factory=deque)
    """Batches without pages."""
    unfinished: deque[UnfinishedBatch] = field(default_factory=deque)
    """Batches with pages that are not answered."""
    next: deque[StepPrompts] = field(default_factory=deque)
    """Parts of the batch that got its pages last, for the next steps."""
    under_way: deque[StepPrompts] = field(default_factory=deque)
    """Parts in passes whose outcome is not known."""


class MixedBatchRunner:
    """Makes the steps of the decode batch, each with chunks of prompts where there are any, and answers for these."""

    def __init__(
        self, link: CoordinatorLink, batch: DecodeBatch, account: PageAccount, me: Holder, limits: StepLimits
    ) -> None:
        self._link = link
        self._batch = batch
        self._tracker = PrefillBatchTracker(account, me)
        self._limits = limits
        self._queues = _PromptQueues()
        self._known_s = 0.0

    @property
    def waiting(self) -> bool:
        """True where there is something for the next step to take along, or to answer."""
        return bool(self._queues.queued or self._queues.unfinished)

    @property
    def idle(self) -> bool:
        """True where every batch that came is answered."""
        return not self.waiting

    @property
    def answered(self) -> int:
        """The highest number of a batch that is answered; so are all that came before it."""
        return self._tracker.answered

    def add(self, batch: wk.PrefillBatch) -> None:
        self._queues.queued.append(batch)

    def drop(self, lease: int) -> bool:
        """Drops a prompt, and returns whether there is one of this lease here.

        Whoever dropped it releases its pages once it has our answer for the batch.
        """
        batches = [*self._queues.queued, *(batch.allocated.batch for batch in self._queues.unfinished)]
        if not any(chunk.lease == lease for batch in batches for chunk in batch.chunks):
            return False
        self._tracker.drop([lease])
        return True

    def step(self, pulse: Pulse, *, ahead: bool) -> StepOutcomes:
        """Makes a step of the decode batch, with the prompts that are next here.

        Where memory runs out for a pass with several chunks, they are taken along one by one, and a chunk that does not
        fit alone fails alone. The step itself is then made without them.
        """
        prompts = self._next()
        if prompts is None:
            return self._batch.step(pulse, ahead=ahead)
        prompts.start_s = time.perf_counter()
        try:
            rows = self._batch.step(pulse, ahead=ahead, prompts=[piece.item for piece in prompts.pieces])
        except (torch.OutOfMemoryError, MemoryError) as error:
            self._too_large(prompts, error)
            return self._batch.step(pulse, ahead=ahead)
        self._queues.under_way.append(prompts)
        return rows

    def _next(self) -> StepPrompts | None:
        queues = self._queues
        while queues.queued and not queues.next:
            allocated = self._tracker.allocate(queues.queued.popleft())
            batch = UnfinishedBatch(allocated, set(range(len(allocated.items))))
            queues.unfinished.append(batch)
            tokens = min(allocated.batch.step_tokens or self._limits.tokens, self._limits.tokens)
            limits = replace(self._limits, tokens=tokens)
            queues.next.extend(StepPrompts(batch, pieces) for pieces in _pieces(allocated.items, limits))
        return queues.next.popleft() if queues.next else None

    def _too_large(self, prompts: StepPrompts, error: BaseException) -> None:
        queues = self._queues
        if len(prompts.pieces) > 1:
            queues.next.extendleft(StepPrompts(prompts.batch, [piece]) for piece in reversed(prompts.pieces))
            return
        log.error("out of memory", error=str(error))
        (failed,) = prompts.pieces
        prompts.batch.fill(failed.index, SequenceFailure(TOO_LARGE))
        for later in queues.next:
            later.pieces = [piece for piece in later.pieces if piece.index != failed.index]
        queues.next = deque(later for later in queues.next if later.pieces)

    def answer(self, before_s: float) -> bool:
        """Answers for each batch of which everything is known, in order, and returns whether anything became known.

        `before_s`: when the last pass before ended, by `time.perf_counter`.
        """
        queues, now = self._queues, time.perf_counter()
        known = self._batch.prompt_outcomes() if queues.under_way else []
        for _, outcomes in known:
            prompts = queues.under_way.popleft()
            # A pass that was launched behind another had the device to itself from that one's end on.
            prompts.batch.seconds += now - max(prompts.start_s, before_s, self._known_s)
            self._known_s = now
            for piece, outcome in zip(prompts.pieces, outcomes, strict=True):
                if piece.last or isinstance(outcome, SequenceFailure):
                    prompts.batch.fill(piece.index, outcome)
        answered = False
        while queues.unfinished and self._finished(queues.unfinished[0]):
            batch = queues.unfinished.popleft()
            self._link.send(self._tracker.answer(batch.allocated, batch.seconds))
            answered = True
        return bool(known) or answered

    def _finished(self, batch: UnfinishedBatch) -> bool:
        """Returns whether a batch may be answered.

        Not while a pass with a part of it is on the device: its pages may be others' once it is answered.
        """
        return not batch.unknown and all(prompts.batch is not batch for prompts in self._queues.under_way)


def _pieces(items: Sequence[PrefillItem], limits: StepLimits) -> Iterator[list[ItemPiece]]:
    """Yields what each step takes along of the items, in order."""
    for cuts in split_chunks([len(item.tokens) for item in items], limits.tokens, limits.prompts):
        yield [_piece(items[cut.chunk], cut) for cut in cuts]


def _piece(item: PrefillItem, cut: ChunkPiece) -> ItemPiece:
    end = cut.start + cut.tokens
    last = end == len(item.tokens)
    sampling = item.sampling if last else None
    tokens = item.tokens[cut.start : end]
    return ItemPiece(cut.chunk, replace(item, tokens=tokens, start=item.start + cut.start, sampling=sampling), last)
