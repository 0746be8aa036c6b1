"""Finds the highest rate at which a wanted share of the requests is inside its SLO. Knows nothing of servers.

What is measured at a rate is noisy: with another seed the same rate may fall on the other side. Three things stand
against it. Every rate is measured with several seeds, whose requests are pooled. The verdicts follow from *all* rates
measured so far: attainment can't rise with the rate, so the non-increasing curve that fits them best (isotonic
regression by pooling adjacent violators, weighted by requests) decides which passed and which failed. And when the
interval is narrow enough, both of its ends are measured again with fresh seeds before it is believed; if an end falls,
the search goes on from what is then known.

No run is cut short and no round of runs is left early, however clear it looks: stopping at a convenient moment would
favour whatever luck had brought until then.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import pairwise

Z95 = 1.959964
"""The two-sided 95 % quantile of the normal distribution."""

Measure = Callable[[float, int], tuple[int, int]]
"""(rate in requests a second, seed) -> (requests inside their SLO, requests sent)."""


@dataclass(frozen=True, slots=True)
class SearchSettings:
    """`start`, `lowest` and `highest` are rates in requests a second; `tolerance` is relative: 0.05 ends the search
    when the lowest rate that failed is at most 5 % above the highest that passed."""

    start: float
    target: float = 0.9
    tolerance: float = 0.05
    repeats: int = 3
    growth: float = 2.0
    lowest: float = 0.01
    highest: float = 10_000.0
    first_seed: int = 0
    most_runs: int = 120

    def __post_init__(self) -> None:
        if not 0 < self.lowest <= self.start <= self.highest < math.inf:
            raise ValueError(
                f"rates: 0 < lowest {self.lowest} <= start {self.start} <= highest {self.highest} must hold"
            )
        if not 0 < self.target < 1:
            raise ValueError(f"target: must be between 0 and 1, got {self.target}")
        if not 0 < self.tolerance < 1:
            raise ValueError(f"tolerance: must be between 0 and 1, got {self.tolerance}")
        if self.repeats < 1 or self.most_runs < self.repeats:
            raise ValueError(f"repeats: must be 1 to most_runs ({self.most_runs}), got {self.repeats}")
        if self.growth <= 1:
            raise ValueError(f"growth: must be above 1, got {self.growth}")


@dataclass(frozen=True, slots=True)
class SearchRun:
    """One measurement: `met` of `total` requests were inside their SLO."""

    seed: int
    met: int
    total: int


@dataclass(frozen=True, slots=True)
class Probe:
    """All runs at one rate, pooled."""

    rate: float
    runs: tuple[SearchRun, ...]

    @property
    def met(self) -> int:
        return sum(run.met for run in self.runs)

    @property
    def total(self) -> int:
        return sum(run.total for run in self.runs)

    @property
    def attainment(self) -> float:
        return self.met / self.total

    @property
    def confidence(self) -> tuple[float, float]:
        """95 % interval of the attainment; see `wilson` and `dispersion`."""
        return wilson(self.met, self.total, dispersion(self.runs))


def wilson(met: int, total: int, dispersion: float = 1.0) -> tuple[float, float]:
    """Wilson's 95 % score interval of a proportion, with `total` counting 1/dispersion of what it would."""
    share, n = met / total, total / dispersion
    middle = (share + Z95**2 / (2 * n)) / (1 + Z95**2 / n)
    half = Z95 / (1 + Z95**2 / n) * math.sqrt(share * (1 - share) / n + Z95**2 / (4 * n**2))
    return (0.0 if met == 0 else middle - half), (1.0 if met == total else middle + half)


def dispersion(runs: Sequence[SearchRun]) -> float:
    """Returns how much more the runs differ than independent requests would: Pearson's statistic over its degrees of
    freedom, at least 1. Requests of one run share a queue, so they miss together and tell less than their number.
    """
    met, total = sum(run.met for run in runs), sum(run.total for run in runs)
    share = met / total
    if len(runs) < 2 or not 0 < share < 1:
        return 1.0
    squares = sum((run.met - run.total * share) ** 2 / (run.total * share * (1 - share)) for run in runs)
    return max(1.0, squares / (len(runs) - 1))


def fitted(probes: Sequence[Probe]) -> list[float]:
    """Returns, for each probe (rates ascending), the attainment on the non-increasing curve that fits all of them
    best."""
    return non_increasing([(probe.met, probe.total) for probe in probes])


def non_increasing(counts: Sequence[tuple[float, float]]) -> list[float]:
    """Isotonic regression of the shares met/total, weighted by total, by pooling adjacent violators."""
    blocks: list[tuple[float, float, int]] = []  # met, total, how many were pooled
    for count in counts:
        met, total, width = (*count, 1)
        while blocks and blocks[-1][0] * total < met * blocks[-1][1]:  # the block on the left attains less
            left = blocks.pop()
            met, total, width = met + left[0], total + left[1], width + left[2]
        blocks.append((met, total, width))
    return [met / total for met, total, width in blocks for _ in range(width)]


def likely(probes: Sequence[Probe], target: float, *, seed: int = 0, draws: int = 400) -> tuple[float, float] | None:
    """95 % interval of the rate at which attainment crosses the target, in requests a second; None when it isn't
    crossed within the rates measured.

    A parametric bootstrap: every rate's attainment is drawn from the beta distribution that its runs leave (Jeffreys'
    prior, requests discounted by `dispersion`), the curve is fitted, and the crossing is interpolated on log(rate).
    """
    drawn = random.Random(seed)
    sizes = [probe.total / dispersion(probe.runs) for probe in probes]
    crossings = []
    for _ in range(draws):
        shares = [
            drawn.betavariate(probe.attainment * n + 0.5, (1 - probe.attainment) * n + 0.5)
            for probe, n in zip(probes, sizes, strict=True)
        ]
        curve = non_increasing([(share * n, n) for share, n in zip(shares, sizes, strict=True)])
        crossing = crossed([probe.rate for probe in probes], curve, target)
        if crossing is not None:
            crossings.append(crossing)
    if len(crossings) < 0.95 * draws:
        return None
    crossings.sort()
    return crossings[int(0.025 * len(crossings))], crossings[int(0.975 * len(crossings))]


def crossed(rates: Sequence[float], curve: Sequence[float], target: float) -> float | None:
    """Returns the rate at which a non-increasing curve falls below the target, linear in log(rate); None: it does
    not."""
    for (low, above), (high, below) in pairwise(zip(rates, curve, strict=True)):
        if above >= target > below:
            return float(low * (high / low) ** ((above - target) / (above - below)))
    return None


class SearchEnding(Enum):
    """Why the search ended."""

    FOUND = "found"
    NONE_PASSED = "none passed"
    """No rate passed, not even the lowest that is allowed."""
    NONE_FAILED = "none failed"
    """No rate failed, not even the highest that is allowed."""
    OUT_OF_RUNS = "out of runs"


@dataclass(frozen=True, slots=True)
class SearchResult:
    """`passed` is the highest rate that passed, `failed` the lowest that failed; the goodput is between them."""

    ending: SearchEnding
    passed: float | None
    failed: float | None
    likely: tuple[float, float] | None
    """95 % interval of the goodput as far as noise goes, often wider than [passed, failed]; see `likely`."""
    probes: tuple[Probe, ...]


class Search:
    """One search: asks `measure` and keeps what it answered. An exception of `measure` ends it and passes through."""

    def __init__(self, settings: SearchSettings, measure: Measure) -> None:
        self._settings = settings
        self._measure = measure
        self._probes: dict[float, Probe] = {}
        self._runs = 0

    @property
    def probes(self) -> list[Probe]:
        """Returns what was measured so far, rates ascending."""
        return [self._probes[rate] for rate in sorted(self._probes)]

    def find(self) -> SearchResult:
        for _ in self.steps():
            pass
        return self.found()

    def steps(self) -> Iterator[Probe]:
        """Each rate after its round of runs, until the search is over; `found` then has the result."""
        while (rate := self._next_rate()) is not None and not self._out_of_runs():
            yield self._measured(rate)

    def found(self) -> SearchResult:
        passed, failed = self._interval()
        probes = self.probes
        return SearchResult(
            self._ending(passed, failed), passed, failed, likely(probes, self._settings.target), tuple(probes)
        )

    def _ending(self, passed: float | None, failed: float | None) -> SearchEnding:
        if self._next_rate() is not None:
            return SearchEnding.OUT_OF_RUNS
        if passed is None:
            return SearchEnding.NONE_PASSED
        return SearchEnding.FOUND if failed is not None else SearchEnding.NONE_FAILED

    def _interval(self) -> tuple[float | None, float | None]:
        """The highest rate that passes on the fitted curve, and the next one above it."""
        probes = self.probes
        passing = sum(fit >= self._settings.target for fit in fitted(probes))
        return (
            probes[passing - 1].rate if passing else None,
            probes[passing].rate if passing < len(probes) else None,
        )

    def _next_rate(self) -> float | None:
        """The rate to measure next; None when nothing more is to be learned."""
        at = self._settings
        if not self._probes:
            return at.start
        passed, failed = self._interval()
        if passed is None:
            assert failed is not None
            return max(at.lowest, failed / at.growth) if failed > at.lowest else self._unconfirmed(failed)
        if failed is None:
            return min(at.highest, passed * at.growth) if passed < at.highest else self._unconfirmed(passed)
        if failed > passed * (1 + at.tolerance):
            return math.sqrt(passed * failed)
        return self._unconfirmed(passed, failed)

    def _unconfirmed(self, *rates: float) -> float | None:
        return next((rate for rate in rates if len(self._probes[rate].runs) < 2 * self._settings.repeats), None)

    def _out_of_runs(self) -> bool:
        return self._runs + self._settings.repeats > self._settings.most_runs

    def _measured(self, rate: float) -> Probe:
        """One round: every run of the whole search has a seed of its own."""
        runs = list(self._probes[rate].runs) if rate in self._probes else []
        for _ in range(self._settings.repeats):
            seed = self._settings.first_seed + self._runs
            met, total = self._measure(rate, seed)
            if not 0 <= met <= total or total == 0:
                raise ValueError(f"a run at {rate:g} requests/s counted {met} of {total} requests")
            runs.append(SearchRun(seed, met, total))
            self._runs += 1
        self._probes[rate] = Probe(rate, tuple(runs))
        return self._probes[rate]
