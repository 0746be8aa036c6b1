"""Fits a latency model to what a server observes.

The constants of the model stay; scale factors follow the observations, so that the level is right on any device. Each
step is weighed once, however often the model is asked for.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import median

from semipd.core.latency import LatencyModel, Scales
from semipd.core.partition import FULL, Mode, Phase
from semipd.core.snapshot import Step


@dataclass(frozen=True, slots=True)
class FitTuning:
    """The constants of a fit."""

    steps: int = 48
    """Steps of one kind, the latest, whose median ratio is a scale factor. A few outliers among them move nothing."""
    fewest_steps: int = 4
    """Steps of one kind below which its factor stays as it is: so few can all be outliers."""
    bound: float = 300.0
    """A factor stays within 1/300 and 300. That is room for a device or a model of another kind, and none for a clock
    that jumped."""


FIT = FitTuning()


@dataclass(slots=True, eq=False)
class ObservedStep:
    """A step as it was observed, and what is known of it so far."""

    step: Step
    start_s: float
    contended_s: float = 0.0
    """Seconds of its duration in which the other phase computed too. It rises when a step that ran beside it ends
    later."""
    contended: bool = False
    """True if the other phase computed for at least half of it."""
    weighed: bool = False
    """True if `ratio` and `launch_bound` are those for `contended` as it is."""
    ratio: float = 0.0
    """Observed over expected time, by a model without scale factors; 0: the step tells nothing."""
    launch_bound: bool = False
    """True for a prefill pass that presumably takes as long as its launch."""

    def add_contention(self, seconds: float) -> None:
        """Notes that the other phase computed beside it for `seconds`."""
        self.contended_s += seconds
        contended = self.contended_s >= self.step.duration_s / 2
        if contended is not self.contended:
            self.contended, self.weighed = contended, False

    def weigh(self, plain: LatencyModel) -> None:
        """Computes `ratio` and `launch_bound`. `plain` is the model without scale factors."""
        self.weighed = True
        if self.contended and self.step.mode is Mode.TURNS:
            # The phases meet on the whole device only while turns begin, by chance.
            self.ratio, self.launch_bound = 0.0, False
            return
        expected, took = expected_s(plain, self.step, self.contended), self.step.duration_s
        if expected > 0 and took > 0:
            prefill = self.step.phase is Phase.PREFILL
            self.launch_bound = prefill and expected <= plain.launch_s
            # Launches one by one are another time than one launch of a graph, and tell nothing of the work.
            eager = prefill and not self.launch_bound and expected == plain.eager_s
            self.ratio = 0.0 if eager else took / expected


def expected_s(model: LatencyModel, step: Step, contended: bool) -> float:
    """Returns what the model says of an observed step.

    `contended`: the other phase computed too. Without it a phase has the whole device, whatever its share.
    """
    shares = step.shares if contended else FULL
    if step.phase is Phase.PREFILL:
        other = shares.decode if contended else 0.0
        return model.prefill_s(
            step.tokens, step.context_tokens, share=shares.prefill, other=other, sequences=step.sequences
        )
    other = shares.prefill if contended else 0.0
    return model.decode_s(step.sequences, step.context_tokens, share=shares.decode, other=other)


class StepWindow:
    """The latest steps of both phases, oldest first. Steps of mixed batches are left out: each tells of both phases at
    once."""

    def __init__(self) -> None:
        self.observed: deque[ObservedStep] = deque()
        self._latest: Step | None = None

    def see(self, steps: Sequence[Step]) -> None:
        """Takes up what is new. `steps` are those that the server has observed: bounded, oldest first, and the same
        objects each time."""
        new = len(steps)
        while new and steps[new - 1] is not self._latest:
            new -= 1
        if not new:
            self.observed.clear()  # nothing that was seen is among them
        for step in steps[new:]:
            if step.mode is not Mode.MIXED:
                self._add(step)
        self._latest = steps[-1] if steps else None
        while self.observed and self.observed[0].step.end_s < steps[0].end_s:
            self.observed.popleft()

    def _add(self, step: Step) -> None:
        added = ObservedStep(step, step.end_s - step.duration_s)
        for other in reversed(self.observed):
            if other.step.end_s <= added.start_s:
                break
            if other.step.phase is not step.phase:
                both = min(step.end_s, other.step.end_s) - max(added.start_s, other.start_s)
                if both > 0:
                    added.add_contention(both)
                    other.add_contention(both)
        self.observed.append(added)


class Fit:
    """A latency model whose scale factors follow the steps that are observed.

    Each factor is the median of observed over expected time of the latest steps of its kind, so that a few outliers
    move nothing, and it is bounded. A kind of which there are too few steps keeps its former factor. Passes that take
    as long as their launch tell how long a launch is, once larger ones tell how long the work is.
    """

    def __init__(self, model: LatencyModel, tuning: FitTuning = FIT) -> None:
        self.model = model
        self._tuning = tuning
        self._plain = replace(model, scales=Scales())
        self._window = StepWindow()

    def see(self, steps: Sequence[Step]) -> LatencyModel:
        """Returns the model fitted to `steps`, oldest first as the server observes them."""
        self._window.see(steps)
        prefill: tuple[list[float], list[float]] = ([], [])  # ratios alone and contended, the latest first
        decode: tuple[list[float], list[float]] = ([], [])
        launches: list[tuple[bool, float]] = []
        for observed in reversed(self._window.observed):
            if not observed.weighed:
                observed.weigh(self._plain)
            if observed.launch_bound:
                launches.append((observed.contended, observed.ratio))
            elif observed.ratio:
                (prefill if observed.step.phase is Phase.PREFILL else decode)[observed.contended].append(observed.ratio)
        before = self.model.scales
        launch = before.launch
        if max(map(len, prefill)) >= self._tuning.fewest_steps:
            launch = self._factor([ratio for _, ratio in launches], before.launch)
        elif launch is None:  # there are none but small passes: they tell of all passes, since no others do
            for contended, ratio in launches:
                prefill[contended].append(ratio)
        scales = Scales(
            prefill_alone=self._factor(prefill[False], before.prefill_alone),
            prefill_shared=self._factor(prefill[True], before.prefill_shared),
            decode_alone=self._factor(decode[False], before.decode_alone),
            decode_shared=self._factor(decode[True], before.decode_shared),
            launch=launch,
        )
        self.model = replace(self._plain, scales=scales)
        return self.model

    def _factor(self, ratios: Sequence[float], before: float | None) -> float | None:
        """Returns the factor for these ratios, the latest first; `before` where they are too few."""
        tuning = self._tuning
        if len(ratios) < tuning.fewest_steps:
            return before
        return min(tuning.bound, max(1 / tuning.bound, median(ratios[: tuning.steps])))


def refitted(model: LatencyModel, steps: Sequence[Step]) -> LatencyModel:
    """Returns the model with its scale factors fitted to these steps alone."""
    return Fit(model).see(steps)
