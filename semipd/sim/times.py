"""Seconds of a decode step and of a prefill pass, read off a profile.

**Alone, on all SMs** (the reference): straight lines through what was measured. A decode step is linear in the tokens
attended to between two contexts of one number of rows, and linear between numbers of rows; rows that were measured at a
single context take their slope from the nearest that were measured at several. A prefill pass is linear in its tokens;
tokens attended to beyond the prompt's own triangle cost what the points with a start above 0 say, per pair. Beyond the
last measurement the last line goes on; below the first number of rows or tokens nothing gets cheaper.

**Everything else** is the reference times a ratio, linear in the logarithms of rows and context, or tokens, and
constant outside of what was measured. Alone on fewer SMs, ratios are linear in log-log between the measured numbers of
SMs, and rise with 1/SMs below the least. Side by side, a pair of SMs that was not measured takes the ratios of those
that were, weighted by the inverse square of the distance in SMs.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from semipd.sim.profile import DecodeTable, PrefillTable, Profile

Pair = tuple[int, int]
"""SMs of the phase, SMs of the other (0: idle)."""
FAR = 1 << 20
"""Tokens of context beyond every model's."""


class Times(Protocol):
    """What the simulated device asks."""

    def decode_s(self, rows: int, context_tokens: int, sms: int, other_sms: int) -> float:
        """One step of `rows` sequences that attend to `context_tokens` in all."""

    def prefill_s(self, tokens: int, pairs: float, sms: int, other_sms: int) -> float:
        """One pass over `tokens` tokens; `pairs`: of a token and one that it attends to, over the pass."""


@dataclass(frozen=True, slots=True)
class Line:
    """Straight between its knots; `at` goes on beyond both ends."""

    xs: tuple[float, ...]
    ys: tuple[float, ...]

    def at(self, x: float) -> float:
        xs, ys = self.xs, self.ys
        if len(xs) == 1:
            return ys[0]
        right = min(max(bisect_right(xs, x), 1), len(xs) - 1)
        slope = (ys[right] - ys[right - 1]) / (xs[right] - xs[right - 1])
        return ys[right] + slope * (x - xs[right])

    def within(self, x: float) -> float:
        """Constant beyond both ends."""
        return self.at(min(max(x, self.xs[0]), self.xs[-1]))


def line(points: Mapping[float, float]) -> Line:
    xs = tuple(sorted(points))
    return Line(xs, tuple(points[x] for x in xs))


class ProfileTimes:
    """A `Times` of a profile. A call costs about half a microsecond once its SMs and rows, or tokens, are known."""

    def __init__(self, profile: Profile) -> None:
        self._decode = _Decode(profile.decode, profile.gpu.sms)
        self._prefill = _Prefill(profile.prefill, profile.gpu.sms)
        self._steps: dict[tuple[int, int, int], Line] = {}
        self._passes: dict[tuple[int, int, int], tuple[float, float, float, float]] = {}

    def decode_s(self, rows: int, context_tokens: int, sms: int, other_sms: int) -> float:
        step = self._steps.get((rows, sms, other_sms))
        if step is None:
            step = self._steps[rows, sms, other_sms] = self._decode.step(rows, (sms, other_sms))
        return step.at(context_tokens) / 1000

    def prefill_s(self, tokens: int, pairs: float, sms: int, other_sms: int) -> float:
        known = self._passes.get((tokens, sms, other_sms))
        if known is None:
            known = self._passes[tokens, sms, other_sms] = self._prefill.batch(tokens, (sms, other_sms))
        base, pair, own, least = known
        return max(least, base + pair * (pairs - own)) / 1000


class _Decode:
    def __init__(self, tables: Sequence[DecodeTable], sms: int) -> None:
        grouped = {(t.sms, t.other_sms): t for t in tables}
        self._reference = _reference_steps(grouped[sms, 0])
        self._rows = sorted(self._reference)
        self._ratios = Ratios({pair: self._ratio(t) for pair, t in grouped.items()}, sms)
        self._contexts = sorted({p.context for t in tables for p in t.points})

    def _alone(self, rows: int, context_tokens: float) -> float:
        near = {float(r): self._reference[r].at(context_tokens) for r in self._neighbours(rows)}
        return line(near).at(max(rows, self._rows[0]))

    def _neighbours(self, rows: int) -> list[int]:
        """The two measured numbers of rows between which, or beyond which, it is."""
        right = min(max(bisect_right(self._rows, rows), 1), len(self._rows) - 1)
        return self._rows[right - 1 : right + 1]

    def _ratio(self, table: DecodeTable) -> Callable[[float, float], float]:
        """Of rows and tokens of context each."""
        by_rows: dict[float, dict[float, float]] = {}
        for p in table.points:
            by_rows.setdefault(math.log(p.rows), {})[math.log(p.context)] = p.ms / self._alone(
                p.rows, p.rows * p.context
            )
        lines = {rows: line(ratios) for rows, ratios in by_rows.items()}

        def ratio(rows: float, context: float) -> float:
            at = math.log(max(1.0, context))
            return line({r: each.within(at) for r, each in lines.items()}).within(math.log(rows))

        return ratio

    def step(self, rows: int, pair: Pair) -> Line:
        """Milliseconds over the tokens attended to."""
        knots = {float(x) for r in self._neighbours(rows) for x in self._reference[r].xs}
        knots |= {float(rows * context) for context in (1, *self._contexts, FAR)}
        ratio = self._ratios.of(pair)
        return line({x: self._alone(rows, x) * ratio(rows, x / rows) for x in knots})


def _reference_steps(table: DecodeTable) -> dict[int, Line]:
    """By rows: milliseconds over the tokens attended to."""
    points: dict[int, dict[float, float]] = {}
    for p in table.points:
        points.setdefault(p.rows, {})[float(p.rows * p.context)] = p.ms
    lines = {rows: line(found) for rows, found in points.items()}
    several = [rows for rows, found in lines.items() if len(found.xs) > 1]
    for rows, found in lines.items():
        if len(found.xs) == 1:
            nearest = lines[min(several, key=lambda r: abs(math.log(r / rows)))]
            slope = (nearest.ys[-1] - nearest.ys[0]) / (nearest.xs[-1] - nearest.xs[0])
            x, y = found.xs[0], found.ys[0]
            lines[rows] = Line((x, x + FAR), (y, y + FAR * slope))
    return lines


class _Prefill:
    def __init__(self, tables: Sequence[PrefillTable], sms: int) -> None:
        grouped = {(t.sms, t.other_sms): t for t in tables}
        reference = grouped[sms, 0]
        self._curve = line({float(p.tokens): p.ms for p in reference.points if p.start == 0})
        later = [(p.tokens * p.start, p.ms - self._alone(p.tokens)) for p in reference.points if p.start]
        self._pair_ms = max(0.0, sum(n * ms for n, ms in later) / sum(n * n for n, _ in later))
        self._ratios = Ratios({pair: self._ratio(t) for pair, t in grouped.items()}, sms)

    def _alone(self, tokens: float) -> float:
        return self._curve.at(max(tokens, self._curve.xs[0]))

    def _ratio(self, table: PrefillTable) -> Callable[[float, float], float]:
        found: dict[float, list[float]] = {}
        for p in table.points:
            expected = self._alone(p.tokens) + self._pair_ms * p.tokens * p.start
            found.setdefault(math.log(p.tokens), []).append(p.ms / expected)
        ratios = line({tokens: sum(each) / len(each) for tokens, each in found.items()})
        return lambda tokens, _start: ratios.within(math.log(tokens))

    def batch(self, tokens: int, pair: Pair) -> tuple[float, float, float, float]:
        """Milliseconds with the prompt's own triangle, of each further pair; the pairs of the triangle; the least."""
        ratio = self._ratios.of(pair)(tokens, 0)
        base = self._alone(tokens) * ratio
        # A batch of many short prompts has fewer pairs than one long prompt: never less than its GEMMs, nor the floor.
        least = max(self._curve.ys[0] * ratio, base / 2)
        return base, self._pair_ms * ratio, tokens * tokens / 2, least


class Ratios:
    """To the reference, by pair of SMs; each ratio is a function of two sizes."""

    def __init__(self, known: Mapping[Pair, Callable[[float, float], float]], sms: int) -> None:
        self._known = known
        self._sms = sms

    def of(self, pair: Pair) -> Callable[[float, float], float]:
        if pair == (self._sms, 0):
            return lambda _a, _b: 1.0
        if pair in self._known:
            return self._known[pair]
        return self._alone(pair[0]) if pair[1] == 0 else self._weighted(pair)

    def _alone(self, sms: int) -> Callable[[float, float], float]:
        alone = {math.log(s): ratio for (s, other), ratio in self._known.items() if other == 0}
        least = min(alone)
        at = math.log(sms)

        def ratio(a: float, b: float) -> float:
            logs = {x: math.log(each(a, b)) for x, each in alone.items()}
            return math.exp(logs[least] + least - at if at < least else line(logs).within(at))

        return ratio

    def _weighted(self, pair: Pair) -> Callable[[float, float], float]:
        weights = [
            (1 / ((s - pair[0]) ** 2 + (other - pair[1]) ** 2), each)
            for (s, other), each in self._known.items()
            if other
        ]
        total = sum(weight for weight, _ in weights)
        return lambda a, b: math.exp(sum(weight * math.log(each(a, b)) for weight, each in weights) / total)
