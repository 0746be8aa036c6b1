"""The device that the two workers share in simulated time, a pass on it, and the prefill batches that they are given.

A pass that is under way goes faster or slower when the other phase begins or ends one: what is left of it is rescaled.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from semipd.core.partition import Mode, Phase
from semipd.core.sms import SmSplit
from semipd.sim.execution_times import Times
from semipd.sim.request import SimSequence


@dataclass(slots=True)
class DevicePass:
    """A pass that is on the device, or next for it."""

    sms: int
    """Multiprocessors that it runs on."""
    start_s: float = 0.0
    end_s: float = math.inf
    seconds: float = 0.0
    """The whole time that it takes beside what the other phase does now."""
    other_sms: int = -1
    """Multiprocessors that the other phase computes on; 0: it is idle; -1: this pass has not begun."""

    def rate(self, now: float, seconds: float, other_sms: int) -> None:
        """Lets it take `seconds` in all from now on. The share of it that is done stays done."""
        left = (self.end_s - now) / self.seconds if self.other_sms >= 0 and self.seconds > 0 else 1.0
        self.end_s = now + left * seconds
        self.seconds, self.other_sms = seconds, other_sms


@dataclass(slots=True)
class SimDevice:
    """The device, with what each worker sees of the other."""

    times: Times
    sms: int
    """Multiprocessors in all."""
    prepare_s: float
    """Seconds of the host before a pass."""
    handover_s: float
    """Seconds that a pass loses when the other phase had the device before it."""
    split: SmSplit
    mode: Mode = Mode.SPLIT
    turn: Phase = Phase.PREFILL
    """The phase whose time slice it is, with `Mode.TURNS` and while both are busy."""
    prefill_busy: bool = False
    decode_busy: bool = False
    stepping: bool = False
    """Tells whether a decode step is on the device."""
    turn_tokens: int = 1
    """Prompt tokens that prefill may compute before decode's time slice."""

    @property
    def turns(self) -> bool:
        return self.mode is Mode.TURNS


@dataclass(slots=True)
class SimBatch:
    """A prefill batch, as a plan gave it out."""

    chunks: list[tuple[SimSequence, int]]
    """Sequences, and the prompt tokens of each that are computed here."""
    tokens: int
    context_tokens: int
    """Tokens attended to at the end of the batch, over its sequences."""
    pairs: float
    """Pairs of a token and one that it attends to."""
    heard_s: float
    """The moment at which the worker hears of it."""
    mode: Mode = Mode.SPLIT
    """The mode when it was given out. It says which worker has the batch, whatever the mode is by now."""
    step_tokens: int | None = None
    """`Plan.step_tokens`."""
    seconds: float = 0.0
    """Time on the device, of passes that have ended."""
    ready_s: float = math.inf
    """The moment from which its pass may begin: what the host does before that is done. Known once it is first in
    line."""
    run: DevicePass | None = None
    """Its pass; None: it has not begun."""
    alternating: bool = False
    """Tells whether the phases take time slices while it runs."""
    waited: bool = False
    """Tells whether it waited for its time slice."""

    def drop(self, sequence: SimSequence) -> bool:
        """Takes a sequence out of the batch, which has not begun. Returns whether it was in it."""
        for at, (one, count) in enumerate(self.chunks):
            if one is sequence:
                del self.chunks[at]
                self.tokens -= count
                self.context_tokens -= sequence.computed + count
                self.pairs -= count * (sequence.computed + count / 2)
                return True
        return False
