"""The goodput out of a few measured rates.

The highest measured rate at which at least 90 % of the requests were inside their SLO passed; the next higher measured
rate failed. The goodput is where the straight line between the two falls below 90 %. It is not known where there is no
such pair: then it is "at least" the highest rate, or "below" the lowest. Runs of one rate are pooled by requests.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

TARGET = 0.9


@dataclass(frozen=True, slots=True)
class Crossing:
    """Requests a second. `passed` is absent where no rate passed, `failed` where none above it was measured."""

    passed: float | None
    failed: float | None
    value: float | None
    """Rate between the two; None where one of them is absent."""

    def said(self) -> str:
        if self.value is not None:
            return f"{self.value:.3g}"
        if self.passed is not None:
            return f">= {self.passed:.3g}"
        return "-" if self.failed is None else f"< {self.failed:.3g}"


def pooled(runs: Iterable[tuple[float, int, float]]) -> dict[float, float]:
    """Pools runs of (rate, requests, attainment) into the attainment by rate, ascending."""
    counts: dict[float, tuple[int, float]] = {}
    for rate, requests, attainment in runs:
        total, met = counts.get(rate, (0, 0.0))
        counts[rate] = (total + requests, met + requests * attainment)
    return {rate: counts[rate][1] / counts[rate][0] for rate in sorted(counts) if counts[rate][0]}


def crossing(attainment: dict[float, float], target: float = TARGET) -> Crossing:
    """Finds where the attainment by rate crosses the target."""
    rates = sorted(attainment)
    passing = [rate for rate in rates if attainment[rate] >= target]
    if not passing:
        return Crossing(None, rates[0] if rates else None, None)
    passed = passing[-1]
    above = [rate for rate in rates if rate > passed]
    if not above:
        return Crossing(passed, None, None)
    failed = above[0]
    share = (attainment[passed] - target) / (attainment[passed] - attainment[failed])
    return Crossing(passed, failed, passed + share * (failed - passed))
