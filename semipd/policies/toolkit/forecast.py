"""The server as a policy expects it: a latency model that follows it, what arrives, and when the prefill worker will
be free."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property

from semipd.core.latency import NOMINAL, LatencyModel
from semipd.core.partition import FULL, Mode, Phase
from semipd.core.snapshot import Observed, Snapshot, WaitingSequence
from semipd.policies.toolkit.deadlines import Work
from semipd.policies.toolkit.fitting import FIT, Fit, FitTuning
from semipd.policies.toolkit.running_batch import RunningSample, RunningSampler


@dataclass(frozen=True, slots=True)
class ForecastTuning:
    """The constants of a forecast."""

    refit_s: float = 0.1
    """Seconds between two fits of the latency model, at least: each goes through all observed steps."""
    recent_first_tokens: int = 64
    """First tokens, the latest, that say what prompts arrive."""
    arrival_window_s: float = 0.5
    """Seconds over which arrivals are counted, at least: a few prompts that came at once are no rate."""
    fewest_completions: int = 16
    """Sequences that ended, below which nothing is said about how long outputs are."""
    answer_steps: int = 8
    """Observed steps, the latest, among which the prefill worker's last answer is looked for."""
    first_prompt_tokens: int = 512
    """Mean prompt tokens of a request that are presumed before a first token was observed."""
    step_tokens: int = 768
    """Prompt tokens that are presumed to be computed for each decode step in time-sliced and mixed batches, where the
    policy names no number."""
    probe_tokens: int = 1000
    """Tokens of the prompt whose mean time for a token is taken for that of any prompt's: some attention is in it."""
    fit: FitTuning = FIT
    """The constants of the fit."""


FORECAST = ForecastTuning()


@dataclass(frozen=True, slots=True)
class Learned:
    """The findings of the last fit. It holds until the next one."""

    at_s: float
    model: LatencyModel
    prompt_tokens: int
    """Mean prompt tokens of a request."""
    observed: Observed | None = None
    """The observations that it was learned from; None: nothing yet."""
    served_tokens: int = 0
    """Prompt tokens of the latest requests that got their first token ..."""
    served_s: float = 0.0
    """... in so many seconds."""
    prompt_per_token: float | None = None
    """Prompt tokens to compute for each token that is sampled; None: too few sequences have ended to tell."""


class Forecaster:
    """Learns from each snapshot, and gives a forecast for it."""

    def __init__(
        self,
        model: LatencyModel | None = None,
        *,
        running: RunningSampler[RunningSample] | None = None,
        tuning: ForecastTuning = FORECAST,
    ) -> None:
        """`model` is presumed before anything was observed; None: the model of the engine's limits, as the first
        snapshot has it. `running` is a sampler that the policy uses as well; None: one of its own."""
        self._tuning = tuning
        self._running = running or RunningSampler(RunningSample)
        self._start(model or NOMINAL)
        self._started = model is not None
        self._idle_s = -math.inf  # when the prefill worker was last seen to have nothing
        self._answered_s = -math.inf  # when its last batch that was observed ended

    def _start(self, model: LatencyModel) -> None:
        self._fit = Fit(model, self._tuning.fit)
        self.learned = Learned(-math.inf, model, self._tuning.first_prompt_tokens)
        """The findings of the last fit."""

    def see(self, snapshot: Snapshot, step_tokens: int | None = None) -> Forecast:
        """Returns the forecast for a snapshot. Call it with each one, once or more often.

        `step_tokens`: prompt tokens for each decode step, as the policy's last plan has them; None: not known.
        """
        if not self._started:
            self._started = True
            self._start(snapshot.limits.latency)
        if snapshot.prefill_batches == 0:
            self._idle_s = snapshot.now_s
        for step in reversed(snapshot.observed.steps[-self._tuning.answer_steps :]):
            if step.phase is Phase.PREFILL:
                self._answered_s = step.end_s
                break
        if snapshot.now_s >= self.learned.at_s + self._tuning.refit_s and snapshot.observed != self.learned.observed:
            self.learned = self._learn(snapshot)
        begun_s = max(self._idle_s, self._answered_s)
        return Forecast(snapshot, self.learned, self._running, begun_s, step_tokens, self._tuning)

    def _learn(self, snapshot: Snapshot) -> Learned:
        observed = snapshot.observed
        learned = replace(
            self.learned,
            at_s=snapshot.now_s,
            observed=observed,
            model=self._fit.see(observed.steps),
            prompt_per_token=prompt_per_token(observed, self._tuning.fewest_completions),
        )
        latest = observed.first_tokens[-self._tuning.recent_first_tokens :]
        if not latest:
            return learned
        served_tokens = sum([f.prompt_tokens for f in latest])
        return replace(
            learned,
            served_tokens=served_tokens,
            served_s=snapshot.now_s - latest[0].at_s,
            prompt_tokens=max(1, served_tokens // len(latest)),
        )


class Forecast:
    """The expectations at the moment of one snapshot."""

    def __init__(
        self,
        snapshot: Snapshot,
        learned: Learned,
        running: RunningSampler[RunningSample],
        begun_s: float,
        step_tokens: int | None,
        tuning: ForecastTuning,
    ) -> None:
        """`begun_s`: when the prefill worker can have begun with what it has."""
        self.snapshot = snapshot
        self.model = learned.model
        """The latency model, fitted to what was observed."""
        self.prompt_tokens = learned.prompt_tokens
        self.prompt_per_token = learned.prompt_per_token
        self._learned = learned
        self._running = running
        self._begun_s = begun_s
        self._step_tokens = step_tokens or tuning.step_tokens
        self._tuning = tuning
        side_by_side = snapshot.mode is Mode.SPLIT and bool(snapshot.running)
        self.prefill_share = snapshot.shares.prefill if side_by_side else FULL.prefill
        """Percent of the device that prefill computes on: all of it unless decode computes beside it."""
        self.decode_share = snapshot.shares.decode if side_by_side else 0.0
        """Percent of the device that decode computes on beside prefill; 0: not at the same time."""

    @property
    def launch_s(self) -> float:
        """Seconds that any prefill batch takes at least."""
        return self.model.floor_s()

    @property
    def arriving_tokens_per_s(self) -> float:
        """Prompt tokens a second: of the requests that got their first token lately, and of those that wait for it."""
        waiting = sum([w.remaining_tokens for w in self.snapshot.waiting])
        window_s = max(self._tuning.arrival_window_s, self._learned.served_s)
        return (self._learned.served_tokens + waiting) / window_s

    def in_flight_s(self, step_tokens: int | None = None) -> float:
        """Returns the seconds until the prefill worker has computed what it was given.

        `step_tokens`: prompt tokens for each decode step from now on; None: as the policy's last plan has them.
        """
        flying = [w for w in self.snapshot.waiting if w.in_flight_tokens]
        if not flying:
            return 0.0
        model, batches = self.model, self.snapshot.prefill_batches
        step_tokens = step_tokens or self._step_tokens
        tokens = sum([w.in_flight_tokens for w in flying])
        context = sum([w.computed_tokens for w in flying]) + tokens
        total = model.prefill_s(
            tokens, context, share=self.prefill_share, other=self.decode_share, sequences=len(flying)
        )
        total += max(0, batches - 1) * model.batch_s * model.scales.prefill(False)
        total += max(batches, tokens / step_tokens) * self._decode_between_s(step_tokens)
        return max(0.0, total - max(0.0, self.snapshot.now_s - self._begun_s))

    def work(self) -> Work:
        """Returns a function that says how many seconds the rest of a prompt takes, under the shares as they are."""
        model, probe = self.model, self._tuning.probe_tokens
        here_s = model.prompt_s(probe, 0, share=self.prefill_share, other=self.decode_share)
        factor = here_s / model.prompt_s(probe, 0) * (model.scales.prefill(False))
        step_tokens = self._step_tokens
        factor *= 1 + self._decode_between_s(step_tokens) / model.prefill_s(step_tokens, step_tokens)
        token_s, attention_s = model.token_s * factor, model.attention_s * factor

        def seconds(w: WaitingSequence) -> float:
            tokens = w.prompt_tokens - w.computed_tokens - w.in_flight_tokens
            return tokens * (token_s + (w.computed_tokens + w.in_flight_tokens + tokens / 2) * attention_s)

        return seconds

    def _decode_between_s(self, step_tokens: int) -> float:
        """Returns the seconds that decode adds to each `step_tokens` prompt tokens: time-sliced, the step between two
        batches; in mixed batches, the decode rows in one."""
        if self.snapshot.mode is Mode.SPLIT or not self.snapshot.running:
            return 0.0
        if self.snapshot.mode is Mode.TURNS:
            return self._decode_step_s
        rows, context = len(self.snapshot.running), self._running.context_tokens(self.snapshot)
        return max(0.0, self.model.mixed_s(step_tokens, 0, rows, context) - self.model.mixed_s(step_tokens, 0, 0, 0))

    @cached_property
    def _decode_step_s(self) -> float:
        """Seconds that a decode step of all running sequences takes on the whole device."""
        return self.model.decode_s(len(self.snapshot.running), self._running.context_tokens(self.snapshot))


def prompt_per_token(observed: Observed, fewest: int) -> float | None:
    """Returns the prompt tokens that were computed for each sampled token lately; None: fewer than `fewest` ended.

    Tokens of running sequences count, too. Counting only those of finished sequences would favour short ones, because
    these end first.
    """
    prompts, ended = observed.first_tokens, observed.completions
    if not prompts or len(ended) < fewest:
        return None
    since = max(ended[0].at_s, observed.steps[0].end_s if observed.steps else 0.0)
    ends = sum([c.at_s > since for c in ended])
    sampled = sum([s.tokens for s in observed.steps if s.phase is Phase.DECODE and s.end_s > since])
    if ends < fewest or not sampled:
        return None
    return sum([p.prompt_tokens for p in prompts]) / len(prompts) * ends / sampled
