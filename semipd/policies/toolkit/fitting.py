"""Fits a latency model to what a server observes. Each step is weighed once, however often the model is asked for."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import median

from semipd.core.partition import Mode, Phase
from semipd.core.snapshot import Step
from semipd.policies.toolkit.latency import LatencyModel, Scales, expected_s

FITTED_TO = 48
"""Steps of one kind, the latest, that a scale factor is the median of."""
FEWEST = 4
"""Steps of one kind below which its factor stays as it is."""
BOUND = 300.0
"""A factor stays within 1/300 and 300: room for a small model or a CPU, none for a clock that jumped."""


@dataclass(slots=True, eq=False)
class Seen:
    """An observed step, and what is known about it so far."""

    step: Step
    start_s: float
    company_s: float = 0.0
    """Of its duration, that the other phase computed too. Rises when a step that ran beside it ends later."""
    company: bool = False
    """The other phase computed for at least half of it."""
    weighed: bool = False
    """`ratio` and `small` are those in this company."""
    ratio: float = 0.0
    """Observed over expected, by a model without scale factors; 0: it tells nothing."""
    small: bool = False
    """A prefill batch that only its launch makes so long, it is thought."""

    def meet(self, seconds: float) -> None:
        """The other phase computed for so long beside it."""
        self.company_s += seconds
        company = self.company_s >= self.step.duration_s / 2
        if company is not self.company:
            self.company, self.weighed = company, False

    def weigh(self, plain: LatencyModel) -> None:
        self.weighed = True
        if self.company and self.step.mode is Mode.TURNS:  # as turns begin, the phases meet on the whole device: chance
            self.ratio, self.small = 0.0, False
            return
        expected, took = expected_s(plain, self.step, self.company), self.step.duration_s
        if expected > 0 and took > 0:
            self.ratio = took / expected
            self.small = self.step.phase is Phase.PREFILL and expected <= plain.launch_s


class Window:
    """The latest steps of both phases, oldest first, but for those of mixed batches: each tells of both at once."""

    def __init__(self) -> None:
        self.seen: deque[Seen] = deque()
        self._latest: Step | None = None

    def see(self, steps: Sequence[Step]) -> None:
        """`steps` as the server observes them: bounded, oldest first, and the same objects each time."""
        new = len(steps)
        while new and steps[new - 1] is not self._latest:
            new -= 1
        if not new:
            self.seen.clear()  # nothing that was seen is among them
        for step in steps[new:]:
            if step.mode is not Mode.MIXED:
                self._add(step)
        self._latest = steps[-1] if steps else None
        while self.seen and self.seen[0].step.end_s < steps[0].end_s:
            self.seen.popleft()

    def _add(self, step: Step) -> None:
        added = Seen(step, step.end_s - step.duration_s)
        for other in reversed(self.seen):
            if other.step.end_s <= added.start_s:
                break
            if other.step.phase is not step.phase:
                both = min(step.end_s, other.step.end_s) - max(added.start_s, other.start_s)
                if both > 0:
                    added.meet(both)
                    other.meet(both)
        self.seen.append(added)


class Fit:
    """A model whose scale factors follow the steps that are observed.

    Each factor is the median of observed over predicted of the latest steps of its kind, so that a few outliers move
    nothing, and is bounded. A kind that too few steps are of keeps the factor that it had. Small prefill batches, which
    take as long as their launch, say how long that is, once larger ones say how long the work is.
    """

    def __init__(self, model: LatencyModel) -> None:
        self.model = model
        self._plain = replace(model, scales=Scales())
        self._window = Window()

    def see(self, steps: Sequence[Step]) -> LatencyModel:
        """The model, fitted to `steps`, oldest first as the server observes them."""
        self._window.see(steps)
        prefill: tuple[list[float], list[float]] = ([], [])  # alone, in company; the latest first
        decode: tuple[list[float], list[float]] = ([], [])
        small: list[tuple[bool, float]] = []
        for seen in reversed(self._window.seen):
            if not seen.weighed:
                seen.weigh(self._plain)
            if seen.small:
                small.append((seen.company, seen.ratio))
            elif seen.ratio:
                (prefill if seen.step.phase is Phase.PREFILL else decode)[seen.company].append(seen.ratio)
        before = self.model.scales
        launch = before.launch
        if max(map(len, prefill)) >= FEWEST:
            launch = _factor([ratio for _, ratio in small], before.launch)
        elif launch is None:  # nothing but small ones: they tell of all, as nobody else does
            for company, ratio in small:
                prefill[company].append(ratio)
        scales = Scales(
            prefill_alone=_factor(prefill[False], before.prefill_alone),
            prefill_shared=_factor(prefill[True], before.prefill_shared),
            decode_alone=_factor(decode[False], before.decode_alone),
            decode_shared=_factor(decode[True], before.decode_shared),
            launch=launch,
        )
        self.model = replace(self._plain, scales=scales)
        return self.model


def _factor(ratios: Sequence[float], before: float | None) -> float | None:
    """`ratios`: the latest first."""
    return min(BOUND, max(1 / BOUND, median(ratios[:FITTED_TO]))) if len(ratios) >= FEWEST else before


def refitted(model: LatencyModel, steps: Sequence[Step]) -> LatencyModel:
    """The model with its scale factors fitted to these steps alone."""
    return Fit(model).see(steps)
