"""The decode worker in simulated time: who is in which step, when it runs, and how long that takes.

As `semipd.workers.decode` does it on a GPU. A step is launched while the one before it is on the device, so who is in a
step is settled one step ahead; where the phases take time slices, one step at a time is on the device. While prefill is
idle a step has all multiprocessors; while both phases have work it has decode's share, read when it is launched, or,
with time slices, the whole device.

In mixed batches decode computes prompts, too: a step takes along the next part of the batches that were given to it,
and steps of prompts alone are launched ahead as the others are. A batch that comes while two steps are on the device is
in the one after them.
"""

from __future__ import annotations

import math
from collections import deque
from itertools import chain

from semipd.core.config import MIXED_TOKENS, PAGE_SIZE, pages_for
from semipd.core.partition import Phase
from semipd.core.snapshot import SequenceId
from semipd.sim.device import DevicePass, SimBatch, SimDevice
from semipd.sim.interfaces import DecodeOwner
from semipd.sim.request import NEVER, SimSequence
from semipd.sim.step import SimLoad, SimStep, loads_of


class SimDecodeWorker:
    """Launches decode steps of the sequences that are handed over to it.

    The batch is those sequences; its members are the ones that the next step takes, which are all but the ones that
    are held back.
    """

    def __init__(self, device: SimDevice, owner: DecodeOwner, most_tokens: int = MIXED_TOKENS) -> None:
        """`most_tokens`: the most prompt tokens that a step takes along."""
        self._device = device
        self._owner = owner
        self.adopted: deque[tuple[float, SimSequence]] = deque()
        """Sequences that were handed over and are not in the batch yet, and when the worker hears of each."""
        self.hold: frozenset[SequenceId] = frozenset()
        """Sequences that the plan holds back; from the next step on."""
        self.batches: deque[SimBatch] = deque()
        """Prefill batches, given out and not answered."""
        self._unheard: deque[SimBatch] = deque()
        self._loads: deque[SimLoad] = deque()
        """Parts of prefill batches that the next steps take along, one each."""
        self._most_tokens = most_tokens
        self.flying: deque[SimStep] = deque()
        """Steps that were launched and are not answered for; the first is on the device."""
        self.done = 0
        """The last step that was answered for."""
        self._launched = 0
        self._members: dict[SequenceId, SimSequence] = {}
        """The sequences of the next step."""
        self._paused: dict[SequenceId, SimSequence] = {}
        """Sequences of the batch that are held back."""
        self._context = 0
        """Tokens in the pool of all members."""
        self._growing = [0] * PAGE_SIZE
        """Members that need another page in a step, by that step's number modulo the size of a page."""
        self._ending: dict[int, list[SimSequence]] = {}
        """Members by their last step."""
        self._joining: list[SimSequence] = []
        """Members whose first step is the next one."""
        self._prepared = False
        """Tells whether the next step is settled and waits for its time slice."""

    @property
    def end_s(self) -> float:
        """The moment at which the step on the device ends; infinite where there is none."""
        return self.flying[0].run.end_s if self.flying else math.inf

    @property
    def sms(self) -> int:
        """The multiprocessors that decode now."""
        return self.flying[0].run.sms if self.flying else 0

    @property
    def starved(self) -> bool:
        """Tells whether it has sequences and none of them can go on. Then there is one, which finds no page."""
        return len(self._members) == 1 and not (self.flying or self.adopted or self._paused)

    def wake_s(self, now: float) -> float:
        """Returns when it hears of something; infinite where it has work, or nothing to hear of."""
        if self.flying or self._members or self._loads:
            return math.inf
        heard_s = self.adopted[0][0] if self.adopted else math.inf
        if self._unheard:
            heard_s = min(heard_s, self._unheard[0].heard_s)
        return heard_s if heard_s > now else math.inf

    def give(self, batch: SimBatch) -> None:
        """Takes a prefill batch, to be computed in its steps."""
        self.batches.append(batch)
        self._unheard.append(batch)

    def drop(self, sequence: SimSequence) -> bool:
        """Takes a sequence out of the prefill batch that it is in, unless that has begun. Returns whether it did."""
        for batch in self._unheard:
            if batch.drop(sequence):
                if not batch.chunks:
                    self._unheard.remove(batch)
                    self.batches.remove(batch)
                return True
        return False

    # --- who is in the batch ----------------------------------------------------------------------------------------

    def take_out(self, sequence: SimSequence) -> None:
        """Takes a sequence out of the batch for good, wherever it is.

        Tokens of steps that are not answered for are thrown away. `output` and `pages` are then what it has.
        """
        number = self._launched + 1
        if sequence.joined == NEVER:  # held back, or not heard of
            if self._paused.pop(sequence.number, None) is None:
                self.adopted = deque(each for each in self.adopted if each[1] is not sequence)
            return
        if sequence.number in self._members:
            self._ending[sequence.last_step].remove(sequence)
            self._leave(sequence, number)
            if sequence.joined == number:
                self._joining.remove(sequence)
        elif self._paused.pop(sequence.number, None) is None:  # its last step is launched
            number = sequence.last_step + 1
        number = self._forget_in_flight(sequence, number)
        sequence.pages = pages_for(sequence.computed + number - sequence.joined)
        sequence.output += max(0, self.done - sequence.joined + 1)
        self._prepared = self._prepared and bool(self._members or self._loads)
        self._device.decode_busy = bool(self._members or self.flying or self._loads)

    def _forget_in_flight(self, sequence: SimSequence, number: int) -> int:
        """Drops a sequence's tokens from the steps on the device. Returns the first step that it has no row in."""
        for step in self.flying:
            if sequence in step.enders:
                step.enders.remove(sequence)
            if sequence in step.leavers:
                step.leavers.remove(sequence)
                number = step.number + 1
        for step in self.flying:
            if step.rows and sequence.joined <= step.number < number:
                step.dropped.append(sequence)
        return number

    def _hear(self, now: float) -> None:
        """Takes what was handed over into the batch from the next step on, and opens the next prefill batch."""
        number = self._launched + 1
        while self.adopted and self.adopted[0][0] <= now:
            self._join(self.adopted.popleft()[1], number)
        if self.hold or self._paused:
            self._hold_back(number)
        # A batch is opened when all before it is under way.
        if self._unheard and not self._loads and self._unheard[0].heard_s <= now:
            self._loads.extend(loads_of(self._unheard.popleft(), self._most_tokens))

    def _join(self, sequence: SimSequence, number: int) -> None:
        """Puts a sequence into the batch, from step `number` on."""
        sequence.joined = number
        self._joining.append(sequence)
        self._enter(sequence, number)
        self._owner.joined(sequence)

    def _enter(self, sequence: SimSequence, number: int) -> None:
        """Makes a sequence a member, from step `number` on."""
        self._members[sequence.number] = sequence
        self._context += sequence.computed + number - sequence.joined
        self._growing[(sequence.joined - sequence.computed) % PAGE_SIZE] += 1
        self._ending.setdefault(sequence.last_step, []).append(sequence)

    def _leave(self, sequence: SimSequence, number: int) -> None:
        """Ends a membership; step `number` is the first without the sequence."""
        del self._members[sequence.number]
        self._context -= sequence.computed + number - sequence.joined
        self._growing[(sequence.joined - sequence.computed) % PAGE_SIZE] -= 1

    def _hold_back(self, number: int) -> None:
        """Follows `hold` from step `number` on: pauses members, and lets paused sequences go on."""
        for sequence in [s for n, s in self._paused.items() if n not in self.hold]:
            del self._paused[sequence.number]
            unanswered = next((step for step in self.flying if sequence in step.leavers), None)
            if unanswered is None:
                self._join(sequence, number)
            else:  # no step was launched without it, for two are on the device at most
                unanswered.leavers.remove(sequence)
                self._enter(sequence, number)
        for sequence in [self._members[n] for n in self.hold if n in self._members]:
            self._ending[sequence.last_step].remove(sequence)
            self._leave(sequence, number)
            self._paused[sequence.number] = sequence
            if sequence.joined == number:
                self._joining.remove(sequence)
            last = next((step for step in self.flying if step.rows and step.number == number - 1), None)
            if last is not None and sequence.joined < number:
                last.leavers.append(sequence)
            else:
                self._owner.paused(sequence, number - sequence.joined)

    # --- launching --------------------------------------------------------------------------------------------------

    def begin(self, now: float) -> None:
        """Launches what may be launched."""
        device = self._device
        alternates = device.turns and device.prefill_busy
        if self._prepared:
            if not alternates or device.turn is Phase.DECODE:
                self._take_turn(now)
        elif alternates:
            self._alternate(now)
        elif not (self.flying and self.flying[-1].own_turn):
            self._launch_ahead(now)
        if self.flying and self.flying[0].run.other_sms < 0:
            self.flying[0].run.start_s = now
        device.decode_busy = bool(self._members or self.flying or self._loads)
        device.stepping = bool(self.flying)

    def _launch_ahead(self, now: float) -> None:
        """Launches steps until as many as may be are on the device, or there is nothing for another one."""
        most = 1 if self._device.turns else 2
        while len(self.flying) < most:
            self._hear(now)
            if not self._launch(now):
                return

    def _alternate(self, now: float) -> None:
        """Settles the next step, while prefill has work, and launches it if it is decode's time slice."""
        if self.flying:
            return  # launched when nobody else was there: answered for before anything else is launched
        self._hear(now)
        if self._device.turn is Phase.DECODE:
            self._take_turn(now)
        else:
            self._prepared = bool(self._members or self._loads)

    def _take_turn(self, now: float) -> None:
        """Launches one step, which is answered for before anything else is launched."""
        if self._launch(now):
            self.flying[0].own_turn = True
            return
        self._prepared = False
        if self._members:
            self._device.turn = Phase.PREFILL  # not a page for anybody here

    def _launch(self, now: float) -> bool:
        """Launches the next step. Returns False where there is nothing for it, or no room for it."""
        if len(self.flying) >= 2:
            return False
        number, device = self._launched + 1, self._device
        found = bool(self._members) and self._find_pages(number)
        if not found and not self._loads:
            return False
        load = self._loads.popleft() if self._loads else None
        alone = device.turns or not device.prefill_busy
        run = DevicePass(device.sms if alone else device.split.decode, now)
        rows, context = (len(self._members), self._context) if found else (0, 0)
        step = SimStep(number if found else self._launched, rows, context, run, load)
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
        for sequence in self._ending.pop(number, ()):
            step.enders.append(sequence)
            self._leave(sequence, number + 1)
        return True

    def _find_pages(self, number: int) -> bool:
        """Takes a page for each member whose last one is full. Where none are left, the least important sequence gives
        its own back. Returns False where nobody can be in the step."""
        place = number % PAGE_SIZE
        while self._growing[place] and not self._owner.take_pages(self._growing[place]):
            if len(self._members) + len(self._paused) == 1:
                return False
            sequence = max(chain(self._members.values(), self._paused.values()), key=lambda s: s.rank)
            self.take_out(sequence)
            self._owner.preempted(sequence)
        return bool(self._members)

    # --- running ----------------------------------------------------------------------------------------------------

    def rate(self, now: float, other_sms: int) -> None:
        """Sets the end of the step anew. To be called when anything began or ended; prefill computes on `other_sms`."""
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

    def finish(self, now: float) -> SimStep:
        """Takes the step that has ended. Where it was the last of a prefill batch, that is answered with it."""
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
