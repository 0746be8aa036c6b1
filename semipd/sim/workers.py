"""The two workers: when which pass runs, on how many SMs, and how long that takes.

As `semipd.workers` does it on a GPU. Decode launches a step while the one before it is on the device, so who is in a
step is settled one step ahead; where the phases take turns, one step at a time is on the device. While only one phase
has work it has all SMs; while both have, each its share (read when a pass is launched), or, where they take turns, the
whole device. Prefill takes the turn when it becomes busy, and waits for the step that is on the device by then.

In mixed batches decode computes prompts, too: a step takes along the next of what was given to it, and steps of prompts
alone fly as the others do. A batch that comes while two steps are on the device is in the one after them.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from semipd.core.chunking import split_chunks
from semipd.core.config import MIXED_PROMPTS, MIXED_TOKENS, PAGE_SIZE, pages_for
from semipd.core.partition import Phase
from semipd.sim.device import Batch, Device, Pass
from semipd.sim.request import SimRequest


class PrefillWorker:
    def __init__(self, device: Device) -> None:
        self._device = device
        self.batches: deque[Batch] = deque()
        """Given out and not answered; only the first can be on the device."""
        self._turn_tokens = 0
        """Computed in this turn."""

    @property
    def end_s(self) -> float:
        """When the pass on the device ends; infinite where there is none."""
        return self.batches[0].run.end_s if self.batches and self.batches[0].run is not None else math.inf

    @property
    def sms(self) -> int:
        """That are computing now."""
        return self.batches[0].run.sms if self.batches and self.batches[0].run is not None else 0

    def wake_s(self, now: float) -> float:
        """When it is ready to begin; infinite where that is now, or where a pass is on the device."""
        if self.batches and self.batches[0].run is None and self.batches[0].ready_s > now:
            return self.batches[0].ready_s
        return math.inf

    def give(self, batch: Batch) -> None:
        self.batches.append(batch)
        if len(self.batches) == 1:
            batch.ready_s = batch.heard_s + self._device.prepare_s

    def begin(self, now: float) -> None:
        """Begins the next pass, where one may begin."""
        device = self._device
        first = self.batches[0] if self.batches else None
        if first is None or (first.run is None and first.ready_s > now):
            device.prefill_busy = False
            return
        if first.run is not None:
            return
        if not device.prefill_busy:
            device.prefill_busy = True
            device.turn = Phase.PREFILL  # decode has had the device to itself meanwhile
        first.alternating = device.turns and device.decode_busy
        if first.alternating and (device.turn is not Phase.PREFILL or device.stepping):
            first.waited = True
            return
        alone = device.turns or not device.decode_busy
        first.run = Pass(device.sms if alone else device.split.prefill, now)

    def rate(self, now: float, other_sms: int) -> None:
        """To be called when anything began or ended; `other_sms`: that decode computes on."""
        batch = self.batches[0] if self.batches else None
        if batch is None or batch.run is None or batch.run.other_sms == other_sms:
            return
        seconds = self._device.times.prefill_s(batch.tokens, batch.pairs, batch.run.sms, other_sms)
        if batch.alternating and not other_sms:
            seconds *= self._device.times.pass_by_turns(batch.tokens)
        batch.run.rate(now, seconds + self._device.handover_s * batch.waited, other_sms)

    def finish(self, now: float) -> Batch:
        """Takes the batch whose pass has ended.

        The worker hears messages between two passes. A plan that came before this pass began is prepared, and goes on
        at once or waits for its turn; with one that came later it was idle for a moment, and takes the turn again.
        """
        batch, device = self.batches.popleft(), self._device
        assert batch.run is not None
        batch.seconds = now - batch.run.start_s
        following = self.batches[0] if self.batches else None
        if batch.alternating:
            self._turn_tokens += batch.tokens
            goes_on = following is not None and following.heard_s <= now
            if not (goes_on and following and self._turn_tokens + following.tokens <= device.turn_tokens):
                device.turn = Phase.DECODE
                self._turn_tokens = 0
        if following is not None and following.heard_s <= now:
            following.ready_s = now
        else:
            device.prefill_busy = False
            if following is not None:
                following.ready_s = max(now, following.heard_s) + device.prepare_s
        return batch


@dataclass(slots=True)
class Load:
    """What one decode step takes along of a batch."""

    batch: Batch
    tokens: int
    pairs: float
    last: bool = False
    """With it the batch is computed."""


class Step:
    """A decode step that was launched."""

    __slots__ = (
        "beside_s",
        "context_tokens",
        "dropped",
        "enders",
        "in_turns",
        "joiners",
        "load",
        "number",
        "own_turn",
        "rows",
        "run",
    )

    def __init__(self, number: int, rows: int, context_tokens: int, run: Pass, load: Load | None) -> None:
        self.number = number
        """Without rows that of the last step that had some: who is in which is counted by those."""
        self.rows = rows
        self.load = load
        self.beside_s = 0.0
        """What the host adds."""
        self.context_tokens = context_tokens
        """Attended to, over its rows."""
        self.run = run
        self.joiners: list[SimRequest] = []
        """It is the first step of these."""
        self.enders: list[SimRequest] = []
        """And the last of these."""
        self.dropped: list[SimRequest] = []
        """Left while it was on the device: what it made of them is thrown away."""
        self.own_turn = False
        """It alternates with passes."""
        self.in_turns = False
        """It was launched when nothing of decode's was on the device, as where the phases take turns."""


class DecodeWorker:
    """`take_pages(count)` takes pages out of the pool or says that there are not so many; `preempted` hears of each
    sequence that had to give its pages back, `joined` of each that came into the batch."""

    def __init__(
        self,
        device: Device,
        take_pages: Callable[[int], bool],
        preempted: Callable[[SimRequest], None],
        joined: Callable[[SimRequest], None],
        most_tokens: int = MIXED_TOKENS,
    ) -> None:
        """`most_tokens`: of prompts in a step."""
        self._device = device
        self._take_pages = take_pages
        self._preempted = preempted
        self._joined = joined
        self.adopted: deque[tuple[float, SimRequest]] = deque()
        """Handed over, and when the worker hears of it; it has not taken them into the batch."""
        self.batches: deque[Batch] = deque()
        """Of prompts, given out and not answered."""
        self._unheard: deque[Batch] = deque()
        self._loads: deque[Load] = deque()
        """For the next steps, one each."""
        self._most_tokens = most_tokens
        self.flying: deque[Step] = deque()
        self.done = 0
        """The last step that was answered for."""
        self._launched = 0
        self._members: dict[int, SimRequest] = {}
        """Of the next step."""
        self._context = 0
        self._growing = [0] * PAGE_SIZE
        """Members that need another page in a step, by that step's number modulo the size of a page."""
        self._ending: dict[int, list[SimRequest]] = {}
        self._joining: list[SimRequest] = []
        self._prepared = False
        """Who is in the next step is settled: it waits for its turn."""

    @property
    def end_s(self) -> float:
        return self.flying[0].run.end_s if self.flying else math.inf

    @property
    def sms(self) -> int:
        return self.flying[0].run.sms if self.flying else 0

    def wake_s(self, now: float) -> float:
        if self.flying or self._members or self._loads:
            return math.inf
        heard_s = self.adopted[0][0] if self.adopted else math.inf
        if self._unheard:
            heard_s = min(heard_s, self._unheard[0].heard_s)
        return heard_s if heard_s > now else math.inf

    def give(self, batch: Batch) -> None:
        """Prompts, to be computed in its steps."""
        self.batches.append(batch)
        self._unheard.append(batch)

    def pages_of(self, life: SimRequest, steps: int) -> int:
        """Held by a member after so many steps."""
        return pages_for(life.computed + steps)

    # --- launching --------------------------------------------------------------------------------------------------

    def begin(self, now: float) -> None:
        """Launches what may be launched."""
        device = self._device
        alternates = device.turns and device.prefill_busy
        if self._prepared:
            if not alternates or device.turn is Phase.DECODE:
                self._take_turn(now)
        elif alternates:
            if not self.flying:  # launched when nobody else was there: answered for before anything else is launched
                self._hear(now)
                if device.turn is Phase.DECODE:
                    self._take_turn(now)
                else:
                    self._prepared = bool(self._members or self._loads)
        elif not (self.flying and self.flying[-1].own_turn):
            while len(self.flying) < (1 if device.turns else 2):
                self._hear(now)
                if not self._launch(now):
                    break
        if self.flying and self.flying[0].run.other_sms < 0:
            self.flying[0].run.start_s = now
        device.decode_busy = bool(self._members or self.flying or self._loads)
        device.stepping = bool(self.flying)

    def _take_turn(self, now: float) -> None:
        """One step, which is answered for before anything else is launched."""
        if self._launch(now):
            self.flying[0].own_turn = True
        elif self._members:
            self._prepared = False
            self._device.turn = Phase.PREFILL  # not a page for anybody here

    def _hear(self, now: float) -> None:
        """Takes what was handed over into the batch, from the next step on."""
        number = self._launched + 1
        while self.adopted and self.adopted[0][0] <= now:
            life = self.adopted.popleft()[1]
            life.joined = number
            self._members[life.number] = life
            self._joining.append(life)
            self._context += life.computed
            self._growing[(number - life.computed) % PAGE_SIZE] += 1
            self._ending.setdefault(life.last_step, []).append(life)
            self._joined(life)
        # A batch is opened when all before it is under way.
        if self._unheard and not self._loads and self._unheard[0].heard_s <= now:
            batch = self._unheard.popleft()
            most = min(batch.step_tokens or self._most_tokens, self._most_tokens)
            chunks = [(life.computed, tokens) for life, tokens in batch.chunks]
            self._loads.extend(Load(batch, *sizes) for sizes in step_sizes(chunks, most))
            self._loads[-1].last = True

    def _launch(self, now: float) -> bool:
        if len(self.flying) >= 2:
            return False
        number, device = self._launched + 1, self._device
        found = bool(self._members) and self._find_pages(number)
        if not found and not self._loads:
            return False
        load = self._loads.popleft() if self._loads else None
        alone = device.turns or not device.prefill_busy
        run = Pass(device.sms if alone else device.split.decode, now)
        rows, context = (len(self._members), self._context) if found else (0, 0)
        step = Step(number if found else self._launched, rows, context, run, load)
        step.in_turns = device.turns
        if load is not None and not self.flying:
            step.beside_s = device.prepare_s  # else the host does it while the step before is on the device
        self.flying.append(step)
        self._prepared = False
        if not found:
            return True
        step.joiners, self._joining = self._joining, []
        self._launched = number
        self._context += step.rows
        for life in self._ending.pop(number, ()):
            step.enders.append(life)
            self._forget(life, number + 1)
        return True

    def _find_pages(self, number: int) -> bool:
        """A page for each whose last one is full; the least important gives way. False: nobody is left to give way."""
        place = number % PAGE_SIZE
        while self._growing[place] and not self._take_pages(self._growing[place]):
            if len(self._members) == 1:
                return False
            life = self._members[max(self._members)]
            self._ending[life.last_step].remove(life)
            self._forget(life, number)
            if life.joined == number:
                self._joining.remove(life)
            for step in self.flying:
                if step.rows and step.number >= life.joined:
                    step.dropped.append(life)
            life.pages = self.pages_of(life, number - life.joined)
            life.output += max(0, self.done - life.joined + 1)
            self._preempted(life)
        return True

    def _forget(self, life: SimRequest, number: int) -> None:
        """It is in no step from that one on."""
        del self._members[life.number]
        self._context -= life.computed + number - life.joined
        self._growing[(life.joined - life.computed) % PAGE_SIZE] -= 1

    # --- running ----------------------------------------------------------------------------------------------------

    def rate(self, now: float, other_sms: int) -> None:
        step = self.flying[0] if self.flying else None
        if step is None or step.run.other_sms == other_sms:
            return
        times, rows, load, sms = self._device.times, step.rows, step.load, step.run.sms
        if load is None:
            seconds = times.decode_s(rows, step.context_tokens, sms, other_sms)
            if step.own_turn and not other_sms:
                seconds *= times.step_by_turns(rows)
        else:
            seconds = times.mixed_s(rows, step.context_tokens, load.tokens, load.pairs, sms, other_sms)
            seconds += step.beside_s
        step.run.rate(now, seconds + self._device.handover_s * step.in_turns, other_sms)

    def finish(self, now: float) -> Step:
        """Takes the step that has ended. Where it was the last of a batch of prompts, that is answered with it."""
        step = self.flying.popleft()
        self.done = step.number
        if step.load is not None:
            step.load.batch.seconds += now - step.run.start_s
            if step.load.last:
                self.batches.popleft()
        self._device.decode_busy = bool(self._members or self.flying or self._loads)
        self._device.stepping = bool(self.flying)
        if step.own_turn:
            self._device.turn = Phase.PREFILL
        return step


def step_sizes(chunks: Sequence[tuple[int, int]], most_tokens: int) -> Iterator[tuple[int, float]]:
    """Yields, for each decode step that takes a part of a batch along, its prompt tokens and its attention pairs.

    `chunks`: for each chunk, the tokens computed before it and its own tokens. A pair is a token and one that it
    attends to.
    """
    for pieces in split_chunks([count for _, count in chunks], most_tokens, MIXED_PROMPTS):
        pairs = sum(tokens * (chunks[index][0] + start + tokens / 2) for index, start, tokens in pieces)
        yield sum(tokens for _, _, tokens in pieces), pairs
