"""Reads the seconds of decode steps, prefill passes and mixed batches off a profile.

**Alone, on all SMs** (the reference), times lie on straight lines through what was measured. A decode step is linear in
the tokens attended to between two contexts of one number of rows, and linear between numbers of rows. Rows that were
measured at a single context take their slope from the nearest that were measured at several. A prefill pass is linear
in its tokens. Tokens attended to beyond the prompt's own triangle cost what the points with a start above 0 say, per
pair. Beyond the last measurement the last line goes on; below the first number of rows or tokens nothing gets cheaper.

**Everything else** is the reference times a ratio. Ratios are linear in the logarithms of rows and context, or of
tokens, and constant outside of what was measured. Alone on fewer SMs, ratios are linear on logarithmic scales between
the measured numbers of SMs, and rise with 1/SMs below the least. Side by side, a pair of SMs that was not measured
takes the ratios of those that were, weighted by the inverse square of the distance in SMs.

**A mixed batch** reads the weights once for rows and prompts. Its expected time has three parts: that of a prefill pass
over as many tokens as both have together, without its attention; what prompts pay for their pairs; and what the context
adds to a decode step of as many rows. The ratio of what was measured to that is linear in the logarithms of rows and of
prompt tokens, and constant outside of what was measured. Points that differ in nothing but context and start are
averaged. On other SMs, or beside prefill, it takes the ratios of a prefill pass over as many tokens.

**By turns**, a step and a pass on all SMs take what they take alone times a ratio: GPUs slow down at their power limit,
and steps that alternate with passes run at a lower clock than steps alone. The ratio of a step is linear in the
logarithm of rows, that of a pass in that of tokens, each constant outside of what was measured. Points with the same
rows, or tokens, are averaged. Where none were measured the ratio is 1.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from semipd.profiles.profile import (
    DecodePoint,
    DecodeTable,
    MixedPoint,
    PrefillPoint,
    PrefillTable,
    Profile,
    TurnsPoint,
)

Pair = tuple[int, int]
"""SMs of the phase, SMs of the other (0: idle)."""
FAR = 1 << 20
"""Tokens of context beyond every model's."""


class Times(Protocol):
    """The times of the simulated device."""

    def decode_s(self, rows: int, context_tokens: int, sms: int, other_sms: int) -> float:
        """Returns the seconds of one step of `rows` sequences that attend to `context_tokens` tokens in all."""

    def prefill_s(self, tokens: int, pairs: float, sms: int, other_sms: int) -> float:
        """Returns the seconds of one pass over `tokens` tokens. `pairs` counts each token with each that it attends to,
        over the pass."""

    def mixed_s(self, rows: int, context_tokens: int, tokens: int, pairs: float, sms: int, other_sms: int) -> float:
        """Returns the seconds of one decode step as in `decode_s`, perhaps of no rows, that takes along prompts as in
        `prefill_s`."""

    def step_by_turns(self, rows: int) -> float:
        """Returns the time of a decode step on all SMs that alternates with passes, over its time alone."""

    def pass_by_turns(self, tokens: int) -> float:
        """Returns the time of a pass on all SMs that alternates with decode steps, over its time alone."""


@dataclass(frozen=True, slots=True)
class Line:
    """A function that is straight between its knots. `at` goes on beyond both ends, `within` does not."""

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
        """Returns the value at x; beyond both ends that of the end."""
        return self.at(min(max(x, self.xs[0]), self.xs[-1]))


def line(points: Mapping[float, float]) -> Line:
    xs = tuple(sorted(points))
    return Line(xs, tuple(points[x] for x in xs))


def up_to(buckets: Sequence[int], size: int) -> int:
    """Returns the smallest bucket that holds the size; the size itself where none does."""
    at = bisect_left(buckets, size)
    return buckets[at] if at < len(buckets) else size


def _as_run(table: DecodeTable, buckets: Sequence[int]) -> DecodeTable:
    """Returns the table by the rows that were computed: a step that was measured was padded, too. The rows attend to as
    many tokens together as before."""
    points = {(up_to(buckets, p.rows), p.rows * p.context): p.ms for p in sorted(table.points, key=lambda p: p.rows)}
    return replace(
        table, points=tuple(DecodePoint(rows, round(total / rows), ms) for (rows, total), ms in points.items())
    )


def _as_computed(table: PrefillTable, buckets: Sequence[int]) -> PrefillTable:
    """Returns the table by the tokens that were computed. A pass that was measured unpadded is preferred."""
    points = {(up_to(buckets, p.tokens), p.start): p.ms for p in sorted(table.points, key=lambda p: p.tokens)}
    return replace(table, points=tuple(PrefillPoint(*size, ms) for size, ms in points.items()))


class ProfileTimes:
    """The `Times` of a profile. A call costs about half a microsecond once its SMs and rows, or tokens, are known."""

    def __init__(self, profile: Profile) -> None:
        self._buckets = profile.buckets
        buckets, sms = profile.buckets, profile.gpu.sms
        self._decode = _Decode([_as_run(table, buckets.decode) for table in profile.decode], sms)
        self._prefill = _Prefill([_as_computed(table, buckets.prefill) for table in profile.prefill], sms)
        self._mixed = _Mixed(profile.mixed, self._decode, self._prefill, buckets.mixed) if profile.mixed else None
        self._steps: dict[tuple[int, int, int], Line] = {}
        self._passes: dict[tuple[int, int, int], tuple[float, float, float, float]] = {}
        self._mixes: dict[tuple[int, int, int, int], tuple[float, float, float, Line]] = {}
        self._turns = self._ratios_by_turns(profile.turns, profile.gpu.sms) if profile.turns else None
        self._step_ratios: dict[int, float] = {}
        self._pass_ratios: dict[int, float] = {}

    def decode_s(self, rows: int, context_tokens: int, sms: int, other_sms: int) -> float:
        step = self._steps.get((rows, sms, other_sms))
        if step is None:
            padded = up_to(self._buckets.decode, rows)
            step = self._steps[rows, sms, other_sms] = self._decode.step(padded, (sms, other_sms))
        return step.at(context_tokens) / 1000

    def prefill_s(self, tokens: int, pairs: float, sms: int, other_sms: int) -> float:
        known = self._passes.get((tokens, sms, other_sms))
        if known is None:
            padded = up_to(self._buckets.prefill, tokens)
            known = self._passes[tokens, sms, other_sms] = self._prefill.batch(padded, (sms, other_sms))
        base, pair, own, least = known
        return max(least, base + pair * (pairs - own)) / 1000

    def mixed_s(self, rows: int, context_tokens: int, tokens: int, pairs: float, sms: int, other_sms: int) -> float:
        """Returns what `Times` says. Only a profile that has mixed batches may be asked."""
        known = self._mixes.get((rows, tokens, sms, other_sms))
        if known is None:
            assert self._mixed is not None, "the profile has no mixed passes"
            known = self._mixes[rows, tokens, sms, other_sms] = self._mixed.step(rows, tokens, (sms, other_sms))
        base, pair, least, context = known
        return (max(least, base + pair * pairs) + context.at(context_tokens)) / 1000

    def step_by_turns(self, rows: int) -> float:
        if rows not in self._step_ratios:
            self._step_ratios[rows] = self._turns[0].within(math.log(rows)) if self._turns else 1.0
        return self._step_ratios[rows]

    def pass_by_turns(self, tokens: int) -> float:
        if tokens not in self._pass_ratios:
            self._pass_ratios[tokens] = self._turns[1].within(math.log(tokens)) if self._turns else 1.0
        return self._pass_ratios[tokens]

    def _ratios_by_turns(self, points: Sequence[TurnsPoint], sms: int) -> tuple[Line, Line]:
        """Returns the ratios of steps over the logarithm of rows, and those of passes over that of tokens."""
        steps: dict[float, list[float]] = {}
        passes: dict[float, list[float]] = {}
        for p in points:
            step_s = self.decode_s(p.rows, p.rows * p.context, sms, 0)
            pass_s = self.prefill_s(p.tokens, p.tokens**2 / 2, sms, 0)
            steps.setdefault(math.log(p.rows), []).append(p.step_ms / 1000 / step_s)
            passes.setdefault(math.log(p.tokens), []).append(p.pass_ms / 1000 / pass_s)
        of_steps, of_passes = (line({x: sum(all_) / len(all_) for x, all_ in by.items()}) for by in (steps, passes))
        return of_steps, of_passes


class _Decode:
    def __init__(self, tables: Sequence[DecodeTable], sms: int) -> None:
        grouped = {(t.sms, t.other_sms): t for t in tables}
        self._whole = sms, 0
        self._reference = _reference_steps(grouped[sms, 0])
        self._rows = sorted(self._reference)
        self._ratios = Ratios({pair: self._ratio(t) for pair, t in grouped.items()}, sms)
        self._contexts = sorted({p.context for t in tables for p in t.points})

    def _alone(self, rows: int, context_tokens: float) -> float:
        near = {float(r): self._reference[r].at(context_tokens) for r in self._neighbours(rows)}
        return line(near).at(max(rows, self._rows[0]))

    def of_context(self, rows: int) -> Line:
        """Returns the milliseconds that a step alone on all SMs takes for the tokens attended to, over their number."""
        none = self._alone(rows, 0)
        alone = self.step(rows, self._whole)
        return Line(alone.xs, tuple(y - none for y in alone.ys))

    def _neighbours(self, rows: int) -> list[int]:
        """Returns the two measured numbers of rows between which, or beyond which, this number is."""
        right = min(max(bisect_right(self._rows, rows), 1), len(self._rows) - 1)
        return self._rows[right - 1 : right + 1]

    def _ratio(self, table: DecodeTable) -> Callable[[float, float], float]:
        """Returns the ratio as a function of rows and of tokens of context each."""
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
        """Returns milliseconds over the tokens attended to."""
        knots = {float(x) for r in self._neighbours(rows) for x in self._reference[r].xs}
        knots |= {float(rows * context) for context in (1, *self._contexts, FAR)}
        ratio = self._ratios.of(pair)
        return line({x: self._alone(rows, x) * ratio(rows, x / rows) for x in knots})


def _reference_steps(table: DecodeTable) -> dict[int, Line]:
    """Returns, by rows, milliseconds over the tokens attended to."""
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

    def apart(self, tokens: int) -> tuple[float, float, float]:
        """Returns a pass's milliseconds alone on all SMs: without any attention, of each pair, and the least."""
        base = self._alone(tokens)
        least = max(self._curve.ys[0], base / 2)
        return base - self._pair_ms * tokens * tokens / 2, self._pair_ms, least

    def ratio(self, tokens: int, pair: Pair) -> float:
        """Returns the ratio to the time alone on all SMs."""
        return self._ratios.of(pair)(tokens, 0)

    def batch(self, tokens: int, pair: Pair) -> tuple[float, float, float, float]:
        """Returns milliseconds with the prompt's own triangle, of each further pair; the pairs of the triangle; and the
        least milliseconds."""
        ratio = self.ratio(tokens, pair)
        base = self._alone(tokens) * ratio
        # A batch of many short prompts has fewer pairs than one long prompt: never less than its GEMMs, nor the floor.
        least = max(self._curve.ys[0] * ratio, base / 2)
        return base, self._pair_ms * ratio, tokens * tokens / 2, least


class _Mixed:
    def __init__(
        self, points: Sequence[MixedPoint], decode: _Decode, prefill: _Prefill, buckets: Sequence[int]
    ) -> None:
        self._decode, self._prefill, self._buckets = decode, prefill, buckets
        self._contexts: dict[int, Line] = {0: Line((0.0,), (0.0,))}
        found: dict[float, dict[float, list[float]]] = {}
        for p in points:
            base, pair, least = prefill.apart(up_to(buckets, p.rows + p.tokens))
            expected = max(least, base + pair * p.tokens * (p.start + p.tokens / 2))
            expected += self._context(p.rows).at(p.rows * p.context)
            of_rows = found.setdefault(math.log(p.rows), {})
            of_rows.setdefault(math.log(p.tokens), []).append(p.ms / expected)
        self._ratios = {
            rows: line({tokens: sum(each) / len(each) for tokens, each in by_tokens.items()})
            for rows, by_tokens in found.items()
        }

    def step(self, rows: int, tokens: int, pair: Pair) -> tuple[float, float, float, Line]:
        """Returns milliseconds without attention, of each pair of the prompts, and at least; and those over the tokens
        that the rows attend to."""
        together = up_to(self._buckets, rows + tokens)
        ratio = self._ratio(rows, tokens) * self._prefill.ratio(together, pair)
        base, each, least = self._prefill.apart(together)
        context = self._context(rows)
        return base * ratio, each * ratio, least * ratio, Line(context.xs, tuple(y * ratio for y in context.ys))

    def _context(self, rows: int) -> Line:
        if rows not in self._contexts:
            self._contexts[rows] = self._decode.of_context(rows)
        return self._contexts[rows]

    def _ratio(self, rows: int, tokens: int) -> float:
        at = math.log(tokens)
        return line({r: each.within(at) for r, each in self._ratios.items()}).within(math.log(max(1, rows)))


class Ratios:
    """The ratios to the reference, by pair of SMs. Each ratio is a function of two sizes."""

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
