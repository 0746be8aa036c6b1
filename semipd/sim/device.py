"""What the two workers share in simulated time: the device, and a pass on it; and the batches that they are given.

A pass that is under way goes faster or slower when the other phase begins or ends one: what is left of it is rescaled.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from semipd.core.partition import Mode, Phase
from semipd.core.sms import SmSplit
from semipd.sim.execution_times import Times
from semipd.sim.request import SimRequest


@dataclass(slots=True)
class Pass:
    """On the device, or next for it. `seconds`: under the company that it has now."""

    sms: int
    start_s: float = 0.0
    end_s: float = math.inf
    seconds: float = 0.0
    other_sms: int = -1
    """-1: not begun."""

    def rate(self, now: float, seconds: float, other_sms: int) -> None:
        """From now on it would take so long in all; what is done stays done."""
        left = (self.end_s - now) / self.seconds if self.other_sms >= 0 and self.seconds > 0 else 1.0
        self.end_s = now + left * seconds
        self.seconds, self.other_sms = seconds, other_sms


@dataclass(slots=True)
class Device:
    """What both workers see of each other."""

    times: Times
    sms: int
    prepare_s: float
    handover_s: float
    split: SmSplit
    mode: Mode = Mode.SPLIT
    turn: Phase = Phase.PREFILL
    prefill_busy: bool = False
    decode_busy: bool = False
    stepping: bool = False
    """A decode step is on the device."""
    turn_tokens: int = 1
    """Of prompts, before decode's turn."""

    @property
    def turns(self) -> bool:
        return self.mode is Mode.TURNS


@dataclass(slots=True)
class Batch:
    """One prefill plan. `heard_s`: by the worker. `pairs`: of a token and one that it attends to."""

    chunks: list[tuple[SimRequest, int]]
    tokens: int
    context_tokens: int
    pairs: float
    heard_s: float
    mode: Mode = Mode.SPLIT
    """In which it was given out, and so to whom, whatever the mode is by now."""
    step_tokens: int | None = None
    """As the plan's."""
    seconds: float = 0.0
    """On the device, of passes that have ended."""
    ready_s: float = math.inf
    """Its pass may begin from then on: what the host does before that is done. Known once it is the first in line."""
    run: Pass | None = None
    alternating: bool = False
    waited: bool = False
    """For its turn."""
