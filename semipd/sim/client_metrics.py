"""Latencies and tokens as clients would have seen them, kept without an object for each token."""

from __future__ import annotations

import math
from bisect import bisect_left

from semipd.bench.scoring.score import Distribution


class TokenGaps:
    """Times between two tokens of a sequence: with each decode step, one for all rows that were in the step before."""

    def __init__(self) -> None:
        self._seconds: list[float] = []
        self._counts: list[int] = []
        # The gaps that no later step has surpassed, falling: a query from some step on can have these for an answer.
        self._steps: list[int] = []
        self._longest: list[float] = []

    def step(self, number: int, seconds: float, rows: int) -> None:
        """Records that `rows` rows waited `seconds` from step `number` - 1 to step `number`."""
        if rows:
            self._seconds.append(seconds)
            self._counts.append(rows)
        while self._longest and self._longest[-1] <= seconds:
            self._longest.pop()
            self._steps.pop()
        self._longest.append(seconds)
        self._steps.append(number)

    def one(self, seconds: float) -> None:
        """Records a gap that a sequence has for itself."""
        self._seconds.append(seconds)
        self._counts.append(1)

    def longest_since(self, step: int) -> float:
        """Returns the longest gap of that step and all later ones; 0 where there is none."""
        at = bisect_left(self._steps, step)
        return self._longest[at] if at < len(self._steps) else 0.0

    def distribution(self) -> Distribution | None:
        """Returns what `semipd.bench.scoring.score.distribution` returns for all gaps: percentiles by nearest rank."""
        if not self._seconds:
            return None
        order = sorted(range(len(self._seconds)), key=self._seconds.__getitem__)
        total = sum(self._counts)
        ranks = [max(1, math.ceil(q * total - 1e-9)) for q in (0.5, 0.9, 0.99)]
        found: list[float] = []
        passed = 0
        for at in order:
            passed += self._counts[at]
            while len(found) < len(ranks) and ranks[len(found)] <= passed:
                found.append(self._seconds[at])
        mean = math.fsum(s * n for s, n in zip(self._seconds, self._counts, strict=True)) / total
        return Distribution(total, mean, found[0], found[1], found[2], self._seconds[order[-1]])


class TokenCounts:
    """Counts tokens that came, in all and until the moment at which throughput is no longer counted."""

    def __init__(self, until_s: float) -> None:
        self._until_s = until_s
        self.total = 0
        self.output_in_time = 0
        self.prompt_in_time = 0

    def output(self, at_s: float, count: int) -> None:
        self.total += count
        if at_s <= self._until_s:
            self.output_in_time += count

    def prompt(self, at_s: float, count: int) -> None:
        if at_s <= self._until_s:
            self.prompt_in_time += count
