"""The policy `adaptive`: deadlines first, and a use of the device that is chosen from a latency model."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import ClassVar

from semipd.core.partition import Mode
from semipd.core.plan import Admission, Chunk, Plan
from semipd.core.snapshot import Snapshot, WaitingSequence
from semipd.policies.builtin.adaptive.modes import (
    Hysteresis,
    ModeCandidate,
    best_of,
    candidates,
    in_force,
    presumed_use,
)
from semipd.policies.builtin.adaptive.moment import DecodeSample, Moment
from semipd.policies.builtin.adaptive.tuning import TUNING, Tuning
from semipd.policies.contract import Policy
from semipd.policies.policy_options import PolicyOptions, option
from semipd.policies.toolkit.deadlines import due_s
from semipd.policies.toolkit.forecast import Forecaster
from semipd.policies.toolkit.ordering import BySlack, RankedPrompts
from semipd.policies.toolkit.running_batch import RunningSampler


class AdaptiveOptions(PolicyOptions):
    """The numbers of `Tuning` that an operator may set."""

    batch_ms: float | None = option(
        None,
        "Time that one prefill batch takes. Not given: a quarter of the tightest TTFT that clients lately asked for.",
        unit="ms",
        above=0,
        high=10_000,
    )
    ahead_ms: float = option(
        1000 * TUNING.ahead_s,
        "Time before the prefill worker is free at which it gets its next batch.",
        unit="ms",
        above=0,
        high=10_000,
    )
    margin: float = option(
        100 * TUNING.tpot_margin, "Part of each TPOT that is kept in reserve.", unit="%", above=0, high=90
    )
    dwell_ms: float = option(
        1000 * TUNING.dwell_s,
        "Time that shares and mode stay at least, against flapping.",
        unit="ms",
        above=0,
        high=60_000,
    )

    def tuning(self) -> Tuning:
        """Returns the policy's constants with these options in their place."""
        return replace(
            TUNING,
            batch_s=None if self.batch_ms is None else self.batch_ms / 1000,
            ahead_s=self.ahead_ms / 1000,
            tpot_margin=self.margin / 100,
            dwell_s=self.dwell_ms / 1000,
        )


class Adaptive(Policy):
    """Orders prompts by deadline, and takes time slices, mixed batches or a split: what brings first tokens soonest.

    *Admission.* It refuses only a request with a deadline that, it seems, not even the first token can meet.

    *Order.* Prompts run by deadline slack with ageing (semipd.policies.toolkit.deadlines).

    *Batches.* A prefill batch takes a quarter of the tightest TTFT that clients lately asked for, so that a short
    prompt that arrives next never waits long. It is given out `ahead_ms` before the worker is free. No more prompts are
    begun than decode has places for.

    *Use of the device.* Of the ways that the engine has (modes.py) it takes the one under which a latency model that
    follows the server expects first tokens soonest, while the running batch keeps the TPOT of its SLOs with `margin`.
    These are time slices with as many prompt tokens as the TPOT target allows; mixed batches where so much arrives that
    they are needed; a split where decode can't wait for a time slice to end. A sequence that is ahead of its SLO
    may be slower for a while (tpot_target.py). `dwell_ms` and a threshold for the gain keep the choice from flapping.
    While only one phase has work, shares and mode stay: the engine then gives it the whole device by itself.

    tuning.py has all numbers, moment.py what is derived from a snapshot, modes.py what is minimised, as a formula.
    """

    name: ClassVar[str] = "adaptive"
    Options = AdaptiveOptions
    options: AdaptiveOptions

    def __init__(self, options: AdaptiveOptions | None = None) -> None:
        super().__init__(options)
        self._tuning = tuning = self.options.tuning()
        self._running = RunningSampler(lambda s: DecodeSample(s, self._forecaster, tuning), tuning.sampling)
        self._forecaster = Forecaster(running=self._running, tuning=tuning.forecast)
        self._order = BySlack(self._forecaster, tuning.deadlines)
        self._hysteresis = Hysteresis(tuning.dwell_s, tuning.gain)
        self._chosen: ModeCandidate | None = None  # None: none was made yet
        self._changed_s = -math.inf  # when shares or mode last changed

    def admit(self, snapshot: Snapshot, sequence: WaitingSequence) -> Admission:
        """Refuses a request whose deadline is earlier than a part of the expected time to its first token."""
        if sequence.deadline_s is None:
            return Admission()
        tuning, forecast = self._tuning, self._forecaster.see(snapshot, self._step_tokens)
        work = forecast.work()
        own_s = work(sequence)
        due = due_s(sequence, own_s, tuning.deadlines)
        ahead_s = sum(s for w in snapshot.waiting for s in (work(w),) if due_s(w, s, tuning.deadlines) <= due)
        needed_s = forecast.in_flight_s() + forecast.launch_s + ahead_s + own_s
        left_s = sequence.deadline_s - snapshot.now_s
        if tuning.certain * needed_s <= left_s:
            return Admission()
        return Admission(
            accept=False,
            why=f"the first token is expected in {needed_s:.2f} s and the deadline is in {left_s:.2f} s",
            retry_after_s=max(tuning.least_retry_s, needed_s - left_s),
        )

    def plan(self, snapshot: Snapshot) -> Plan:
        """Returns the next prefill batch and, where both phases have work, how they use the device."""
        forecast = self._forecaster.see(snapshot, self._step_tokens)
        prompts = self._order.ranked(snapshot, forecast)
        if not snapshot.waiting:
            return Plan(mode=self._mode)
        moment = Moment(snapshot, forecast, self._running, self._tuning)
        if not snapshot.running:
            batch = self._next_batch(moment, prompts, moment.chunk_tokens, self._tuning.ahead_s)
            return Plan(prefill=batch, mode=self._mode)
        chosen = self._chosen = self._choose(moment)
        batch = self._next_batch(moment, prompts, chosen.chunk_tokens, self._ahead_s(chosen))
        return Plan(prefill=batch, shares=chosen.shares, mode=chosen.mode, step_tokens=chosen.step_tokens)

    def _choose(self, moment: Moment) -> ModeCandidate:
        """Returns the best way to use the device, or the present one where a change is not worth it."""
        model, load, limits, tuning = moment.forecast.model, moment.load, moment.snapshot.limits, self._tuning
        found = list(candidates(model, load, limits, tuning))
        wanted = best_of(found, load)
        use = self._chosen.use if self._chosen else presumed_use(limits, tuning)
        if wanted.use == use:
            return wanted
        present = in_force(model, load, found, use, tuning) or wanted
        now_s = moment.snapshot.now_s
        settled = self._hysteresis.settle(present, wanted, load, now_s - self._changed_s)
        if settled.use != use:
            self._changed_s = now_s
        return settled

    def _ahead_s(self, chosen: ModeCandidate) -> float:
        """Returns how many seconds before the prefill worker is free its next batch is given out.

        A mixed step is launched while the one before it is on the device, and a batch for it must be there by then.
        """
        return max(self._tuning.ahead_s, chosen.tpot_s) if chosen.mode is Mode.MIXED else self._tuning.ahead_s

    def _next_batch(self, moment: Moment, prompts: RankedPrompts, tokens: int, ahead_s: float) -> tuple[Chunk, ...]:
        """Returns the next prefill batch; empty while the worker is busy for longer than `ahead_s`.

        What arrives in the meantime may have to be first.
        """
        if moment.forecast.in_flight_s(self._step_tokens) > ahead_s:
            return ()
        return prompts.take(tokens, sequences=moment.places(self._mode))

    @property
    def _mode(self) -> Mode:
        """The mode of the last choice."""
        return self._chosen.mode if self._chosen else Mode.SPLIT

    @property
    def _step_tokens(self) -> int:
        """Prompt tokens for each decode step, as the last choice has them or as they are presumed to be."""
        return (self._chosen and self._chosen.step_tokens) or self._tuning.forecast.step_tokens
