"""Keeps recent observations: the last 256 of each kind for policies, the last 30 seconds for people."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import accumulate

from semipd.core.config import OBSERVATIONS_KEPT
from semipd.core.request import Slo
from semipd.core.snapshot import Completion, FirstToken, Observed, Step

WINDOW_S = 30.0
"""Seconds that percentiles and rates look back."""


@dataclass(frozen=True, slots=True)
class LatencyPercentiles:
    """Percentiles of a latency, in seconds."""

    p50: float
    p90: float
    p99: float


def percentiles(values: Iterable[tuple[float, int]]) -> LatencyPercentiles | None:
    """Returns percentiles by nearest rank. `values` are pairs of a value and how often it was seen. None: no values."""
    ordered = sorted(values)
    if not ordered:
        return None
    reached = list(accumulate(times for _, times in ordered))
    p50, p90, p99 = (ordered[bisect_left(reached, math.ceil(q * reached[-1]))][0] for q in (0.5, 0.9, 0.99))
    return LatencyPercentiles(p50, p90, p99)


class Observations:
    """Recent observations. Their number is bounded under any load."""

    def __init__(self) -> None:
        self._steps: deque[Step] = deque(maxlen=OBSERVATIONS_KEPT)
        self._first_tokens: deque[FirstToken] = deque(maxlen=OBSERVATIONS_KEPT)
        self._completions: deque[Completion] = deque(maxlen=OBSERVATIONS_KEPT)
        self._ttft: deque[tuple[float, float]] = deque(maxlen=10_000)
        self._itl: deque[tuple[float, float, int]] = deque(maxlen=10_000)
        self._tokens: deque[tuple[float, int]] = deque(maxlen=10_000)
        self._met: deque[tuple[float, bool]] = deque(maxlen=10_000)
        self._seen = Observed()
        self._changed = False

    def step(self, step: Step) -> None:
        """Records a prefill batch or a decode step."""
        self._steps.append(step)
        self._changed = True
        if step.tokens:
            self._tokens.append((step.end_s, step.tokens if step.phase.value == "decode" else 0))

    def first_token(self, seen: FirstToken) -> None:
        """Records a first token."""
        self._first_tokens.append(seen)
        self._ttft.append((seen.at_s, seen.ttft_s))
        self._tokens.append((seen.at_s, 1))
        self._changed = True

    def gap(self, now: float, seconds: float, sequences: int = 1) -> None:
        """Records the time between two tokens of a sequence, or of several sequences whose tokens came together."""
        self._itl.append((now, seconds, sequences))

    def completion(self, seen: Completion, ttft_s: float) -> None:
        """Records a sequence that completed, and its TTFT."""
        self._completions.append(seen)
        self._changed = True
        if seen.slo != Slo():
            self._met.append((seen.at_s, seen.slo.met(ttft_s, seen.tpot_s)))

    def observed(self) -> Observed:
        """Returns the observations that a policy sees."""
        if self._changed:
            self._seen = Observed(tuple(self._steps), tuple(self._first_tokens), tuple(self._completions))
            self._changed = False
        return self._seen

    def ttft(self, now: float) -> LatencyPercentiles | None:
        return percentiles((v, 1) for at, v in self._ttft if at > now - WINDOW_S)

    def itl(self, now: float) -> LatencyPercentiles | None:
        return percentiles((v, times) for at, v, times in self._itl if at > now - WINDOW_S)

    def tokens_per_second(self, now: float) -> float:
        """Returns the rate of output tokens over the window."""
        return sum(n for at, n in self._tokens if at > now - WINDOW_S) / WINDOW_S

    def attainment(self, now: float) -> float | None:
        """Returns the fraction of the window's requests with an SLO that met it. None: there are none."""
        recent = [ok for at, ok in self._met if at > now - WINDOW_S]
        return sum(recent) / len(recent) if recent else None
