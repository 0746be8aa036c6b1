"""The prefill worker in simulated time: when which pass runs, on how many multiprocessors, and how long that takes.

As `semipd.workers.prefill` does it on a GPU. While decode is idle a pass has all multiprocessors; while both phases
have work it has prefill's share, read when it is launched, or, where they take time slices, the whole device. Prefill
takes the time slice when it becomes busy, and waits for the step that is on the device by then.
"""

from __future__ import annotations

import math
from collections import deque

from semipd.core.partition import Phase
from semipd.sim.device import DevicePass, SimBatch, SimDevice
from semipd.sim.request import SimSequence


class SimPrefillWorker:
    """Computes the batches that it is given, one after the other."""

    def __init__(self, device: SimDevice) -> None:
        self._device = device
        self.batches: deque[SimBatch] = deque()
        """Given out and not answered; only the first can be on the device."""
        self._turn_tokens = 0
        """Prompt tokens computed in this time slice."""

    @property
    def end_s(self) -> float:
        """The moment at which the pass on the device ends; infinite where there is none."""
        return self.batches[0].run.end_s if self.batches and self.batches[0].run is not None else math.inf

    @property
    def sms(self) -> int:
        """The multiprocessors that compute prompts now."""
        return self.batches[0].run.sms if self.batches and self.batches[0].run is not None else 0

    def wake_s(self, now: float) -> float:
        """Returns when it is ready to begin; infinite where that is now, or where a pass is on the device."""
        if self.batches and self.batches[0].run is None and self.batches[0].ready_s > now:
            return self.batches[0].ready_s
        return math.inf

    def give(self, batch: SimBatch) -> None:
        self.batches.append(batch)
        if len(self.batches) == 1:
            batch.ready_s = batch.heard_s + self._device.prepare_s

    def drop(self, sequence: SimSequence, now: float) -> bool:
        """Takes a sequence out of the batch that it is in, unless that has begun. Returns whether it did.

        A batch that is empty then goes away.
        """
        for batch in self.batches:
            if batch.run is None and batch.drop(sequence):
                if not batch.chunks:
                    self.batches.remove(batch)
                    if self.batches and self.batches[0].ready_s == math.inf:
                        self.batches[0].ready_s = max(now, self.batches[0].heard_s) + self._device.prepare_s
                return True
        return False

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
        first.run = DevicePass(device.sms if alone else device.split.prefill, now)

    def rate(self, now: float, other_sms: int) -> None:
        """Sets the end of the pass anew. To be called when anything began or ended; decode computes on `other_sms`."""
        batch = self.batches[0] if self.batches else None
        if batch is None or batch.run is None or batch.run.other_sms == other_sms:
            return
        seconds = self._device.times.prefill_s(batch.tokens, batch.pairs, batch.run.sms, other_sms)
        if batch.alternating and not other_sms:
            seconds *= self._device.times.pass_by_turns(batch.tokens)
        batch.run.rate(now, seconds + self._device.handover_s * batch.waited, other_sms)

    def finish(self, now: float) -> SimBatch:
        """Takes the batch whose pass has ended.

        The worker hears messages between two passes. A plan that came before this pass began is prepared, and goes on
        at once or waits for its time slice; with one that came later it was idle for a moment, and takes the time slice
        again.
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
                following.ready_s = following.heard_s + device.prepare_s
        return batch
