"""Prompts of the decode worker: in mixed batches each step takes along the chunks of one batch (Sarathi-Serve, OSDI
2024, section 4.2). How many, so that the step stays short, is the policy's matter; what is more than a step can take is
spread over several.
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
from semipd.internal.v1 import worker_pb2 as wk
from semipd.memory.account import Holder, PageAccount
from semipd.workers.backend import Batch, Outcomes, Pulse
from semipd.workers.chunks import TOO_LARGE, Chunks, Opened
from semipd.workers.coordinator_link import CoordinatorLink

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Room:
    """What a step can take along, at most."""

    tokens: int = 2**31
    prompts: int = 2**31


@dataclass(slots=True)
class Begun:
    """A batch whose chunks have their pages."""

    opened: Opened
    left: set[int]
    """Places of items whose outcome is not known."""
    seconds: float = 0.0
    """Of the passes that took part of it along."""

    def fill(self, index: int, outcome: TokenOutcome | None) -> None:
        if index in self.left:
            self.left.remove(index)
            self.opened.fill(index, outcome)


@dataclass(frozen=True, slots=True)
class Piece:
    """Of an item of a batch, all or a part."""

    index: int
    item: PrefillItem
    last: bool
    """The end of the item is in it."""


@dataclass(slots=True)
class Load:
    """What one pass takes along, of one batch."""

    begun: Begun
    pieces: list[Piece]
    start_s: float = 0.0


@dataclass(slots=True)
class _Line:
    """Batches in the order in which they came, and what of them is where."""

    queued: deque[wk.PrefillBatch] = field(default_factory=deque)
    begun: deque[Begun] = field(default_factory=deque)
    """And not answered."""
    next: deque[Load] = field(default_factory=deque)
    """Of the batch that was begun last."""
    under_way: deque[Load] = field(default_factory=deque)
    """In passes whose outcome is not known."""


class Prompts:
    def __init__(self, link: CoordinatorLink, batch: Batch, account: PageAccount, me: Holder, room: Room) -> None:
        self._link = link
        self._batch = batch
        self._chunks = Chunks(account, me)
        self._room = room
        self._line = _Line()
        self._known_s = 0.0

    @property
    def waiting(self) -> bool:
        """Whether there is something for the next step to take along, or to answer."""
        return bool(self._line.queued or self._line.begun)

    @property
    def idle(self) -> bool:
        """Whether every batch that came is answered."""
        return not (self._line.queued or self._line.begun)

    @property
    def answered(self) -> int:
        """The highest batch that is answered; so are all that came before it."""
        return self._chunks.answered

    def add(self, batch: wk.PrefillBatch) -> None:
        self._line.queued.append(batch)

    def drop(self, lease: int) -> bool:
        """Whether it is a prompt's here. The pages of such are the dropper's to release, once it has our answer."""
        batches = [*self._line.queued, *(begun.opened.batch for begun in self._line.begun)]
        if not any(chunk.lease == lease for batch in batches for chunk in batch.chunks):
            return False
        self._chunks.drop([lease])
        return True

    def step(self, pulse: Pulse, *, ahead: bool) -> Outcomes:
        """A step of the decode batch, with what is next here. Where memory runs out for a pass with several chunks,
        they are taken along one by one; who does not fit alone fails alone. The step itself is made without them."""
        load = self._next()
        if load is None:
            return self._batch.step(pulse, ahead=ahead)
        load.start_s = time.perf_counter()
        try:
            rows = self._batch.step(pulse, ahead=ahead, prompts=[piece.item for piece in load.pieces])
        except (torch.OutOfMemoryError, MemoryError) as error:
            self._too_large(load, error)
            return self._batch.step(pulse, ahead=ahead)
        self._line.under_way.append(load)
        return rows

    def _next(self) -> Load | None:
        line = self._line
        while line.queued and not line.next:
            opened = self._chunks.open(line.queued.popleft())
            begun = Begun(opened, set(range(len(opened.items))))
            line.begun.append(begun)
            tokens = min(opened.batch.step_tokens or self._room.tokens, self._room.tokens)
            room = replace(self._room, tokens=tokens)
            line.next.extend(Load(begun, pieces) for pieces in _pieces(opened.items, room))
        return line.next.popleft() if line.next else None

    def _too_large(self, load: Load, error: BaseException) -> None:
        line = self._line
        if len(load.pieces) > 1:
            line.next.extendleft(Load(load.begun, [piece]) for piece in reversed(load.pieces))
            return
        log.error("out of memory", error=str(error))
        (failed,) = load.pieces
        load.begun.fill(failed.index, SequenceFailure(TOO_LARGE))
        for later in line.next:
            later.pieces = [piece for piece in later.pieces if piece.index != failed.index]
        line.next = deque(later for later in line.next if later.pieces)

    def answer(self, before_s: float) -> bool:
        """Answers for each batch of which everything is known, in order; whether anything became known. `before_s`:
        when the last pass before ended, by `time.perf_counter`."""
        line, now = self._line, time.perf_counter()
        known = self._batch.prompt_outcomes() if line.under_way else []
        for _, outcomes in known:
            load = line.under_way.popleft()
            # A pass that was launched behind another had the device to itself from that one's end on.
            load.begun.seconds += now - max(load.start_s, before_s, self._known_s)
            self._known_s = now
            for piece, outcome in zip(load.pieces, outcomes, strict=True):
                if piece.last or isinstance(outcome, SequenceFailure):
                    load.begun.fill(piece.index, outcome)
        told = False
        # Not while a pass with a part of it is on the device: its pages may be others' once it is answered.
        while line.begun and not line.begun[0].left and all(load.begun is not line.begun[0] for load in line.under_way):
            begun = line.begun.popleft()
            self._link.send(self._chunks.done(begun.opened, begun.seconds))
            told = True
        return bool(known) or told


def _pieces(items: Sequence[PrefillItem], room: Room) -> Iterator[list[Piece]]:
    """Yields what each step takes along of the items, in order."""
    for cuts in split_chunks([len(item.tokens) for item in items], room.tokens, room.prompts):
        yield [_piece(items[cut.chunk], cut) for cut in cuts]


def _piece(item: PrefillItem, cut: ChunkPiece) -> Piece:
    end = cut.start + cut.tokens
    last = end == len(item.tokens)
    sampling = item.sampling if last else None
    tokens = item.tokens[cut.start : end]
    return Piece(cut.chunk, replace(item, tokens=tokens, start=item.start + cut.start, sampling=sampling), last)
