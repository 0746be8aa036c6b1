"""Prompts of the decode worker: in mixed batches each step takes along the chunks of one batch (Sarathi-Serve, OSDI
2024, section 4.2). How many, so that the step stays short, is the policy's matter.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field

import structlog
import torch

from semipd.engine.engine import Failed, PrefillItem
from semipd.internal.v1 import worker_pb2 as wk
from semipd.memory.account import Holder, PageAccount
from semipd.workers.chunks import TOO_LARGE, Chunks, Opened
from semipd.workers.compute import Batch, Outcomes, Pulse
from semipd.workers.link import Link

log = structlog.get_logger()


@dataclass(slots=True)
class Begun:
    """A batch whose chunks have their pages."""

    opened: Opened
    left: int
    """Items whose outcome is not known."""
    seconds: float = 0.0
    """Of the passes that took part of it along."""


@dataclass(slots=True)
class Load:
    """What one pass takes along: some items of one batch."""

    begun: Begun
    indices: list[int]
    start_s: float = 0.0

    @property
    def items(self) -> list[PrefillItem]:
        return [self.begun.opened.items[index] for index in self.indices]


@dataclass(slots=True)
class _Line:
    """Batches in the order in which they came, and what of them is where."""

    queued: deque[wk.PrefillBatch] = field(default_factory=deque)
    begun: deque[Begun] = field(default_factory=deque)
    """And not answered."""
    again: deque[Load] = field(default_factory=deque)
    """Memory ran out for these together: each by itself."""
    under_way: deque[Load] = field(default_factory=deque)
    """In passes whose outcome is not known."""


class Prompts:
    def __init__(self, link: Link, batch: Batch, account: PageAccount, me: Holder) -> None:
        self._link = link
        self._batch = batch
        self._chunks = Chunks(account, me)
        self._line = _Line()
        self._known_s = 0.0

    @property
    def waiting(self) -> bool:
        """Whether there is something for the next step to take along, or to answer."""
        return bool(self._line.queued or self._line.again or self._line.begun)

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
            rows = self._batch.step(pulse, ahead=ahead, prompts=load.items)
        except (torch.OutOfMemoryError, MemoryError) as error:
            self._too_large(load, error)
            return self._batch.step(pulse, ahead=ahead)
        self._line.under_way.append(load)
        return rows

    def _next(self) -> Load | None:
        line = self._line
        if line.again:
            return line.again.popleft()
        while line.queued:
            opened = self._chunks.open(line.queued.popleft())
            begun = Begun(opened, len(opened.items))
            line.begun.append(begun)
            if begun.left:
                return Load(begun, list(range(begun.left)))
        return None

    def _too_large(self, load: Load, error: BaseException) -> None:
        if len(load.indices) > 1:
            self._line.again.extend(Load(load.begun, [index]) for index in load.indices)
            return
        log.error("out of memory", error=str(error))
        load.begun.opened.fill(load.indices[0], Failed(TOO_LARGE))
        load.begun.left -= 1

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
            load.begun.left -= len(outcomes)
            for index, outcome in zip(load.indices, outcomes, strict=True):
                load.begun.opened.fill(index, outcome)
        told = False
        while line.begun and not line.begun[0].left:
            begun = line.begun.popleft()
            self._link.send(self._chunks.done(begun.opened, begun.seconds))
            told = True
        return bool(known) or told
