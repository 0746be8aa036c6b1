"""Fits how much longer a phase takes on a share of the device, alone and beside the other phase."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from semipd.core.latency import Knots, Slowdown
from semipd.profiles.fitting import Numbers, slowdown_factors

WHOLE = 1.0
OVERLAPS = tuple(part / 50 for part in range(51))
"""The values of `Slowdown.overlap` that are tried."""
EVEN = 0.5
"""The overlap where no table tells."""
INDIFFERENT = 1e-3
"""Weight of the wish for an even overlap, which decides where several fit alike."""
DISJOINT = 1 + 1e-9
"""Two fractions that together are at most this do not overlap."""


@dataclass(frozen=True, slots=True)
class ShareTable:
    """The points of one table of a profile, in terms of what they cost on the full device."""

    share: float
    """The phase's own fraction of the device."""
    other: float
    """The other phase's; 0: it is idle."""
    costs: Numbers
    """[points, costs]: milliseconds on the full device."""
    measured: Numbers
    """[points]: milliseconds."""

    def fitted(self) -> tuple[float, ...]:
        """Returns the factor of each cost that fits the points."""
        return slowdown_factors(self.costs, self.measured)

    def worst(self) -> tuple[float, ...]:
        """Returns the factor of the point that took longest against its costs, for every cost."""
        worst = float(np.max(self.measured / self.costs.sum(axis=1)))
        return tuple(worst for _ in range(self.costs.shape[1]))

    def distance(self, slowdown: Slowdown) -> float:
        """Returns how far a slowdown is from the worst point: the sum over costs of squared logarithms."""
        factors = slowdown.factors(100 * self.share, 100 * self.other)
        return float(np.sum(np.log(np.array(factors) / np.array(self.worst())) ** 2))


def fit_slowdown(tables: Sequence[ShareTable]) -> Slowdown:
    """Returns the slowdown that fits the tables, of which one is of the whole device alone.

    Alone there is one knot for each share that was measured. Beside the other phase there is one knot for each pair of
    shares that do not overlap. Where both phases may use the same SMs the hardware decides pass by pass who gets them,
    and times scatter: there the slowdown is that of the worst point, so that no policy counts on luck.
    """
    alone = {t.share: t.fitted() for t in tables if not t.other}
    apart = [t for t in tables if t.other and t.share + t.other <= DISJOINT]
    if len(alone) == 1:  # no smaller share was measured alone: what is known of it is what it does beside the other
        alone |= {t.share: t.fitted() for t in apart}
        apart = []
    costs = tables[0].costs.shape[1]
    alone[WHOLE] = (1.0,) * costs
    on = Slowdown(_never_faster_on_less(alone), ((WHOLE, (1.0,) * costs),), EVEN)
    contended = {t.other: _further(t, t.fitted(), on) for t in apart}
    together = [t for t in tables if t.other and t.share + t.other > DISJOINT]
    if not together:
        return replace(on, contended=_knots(contended)) if contended else on
    tried = [_overlapping(replace(on, overlap=overlap), contended, together) for overlap in OVERLAPS]
    return min(tried, key=lambda s: sum(t.distance(s) for t in together) + INDIFFERENT * (s.overlap - EVEN) ** 2)


def _overlapping(
    on: Slowdown, contended: Mapping[float, tuple[float, ...]], together: Sequence[ShareTable]
) -> Slowdown:
    """Returns the slowdown with this overlap that meets the worst point of the table with the largest shares."""
    widest = max(together, key=lambda t: (t.share, t.other))
    return replace(on, contended=_knots({**contended, widest.other: _further(widest, widest.worst(), on)}))


def _further(table: ShareTable, factors: tuple[float, ...], known: Slowdown) -> tuple[float, ...]:
    """Returns what is missing of the factors in a slowdown that knows no contention."""
    without = known.factors(100 * table.share, 100 * table.other)
    return tuple(f / w for f, w in zip(factors, without, strict=True))


def _knots(by_fraction: Mapping[float, tuple[float, ...]]) -> Knots:
    return tuple(sorted(by_fraction.items()))


def _never_faster_on_less(alone: Mapping[float, tuple[float, ...]]) -> Knots:
    """Returns the knots with each factor at least that of the next larger share: a point may be off by a few percent,
    but no cost shrinks with the share."""
    knots: list[tuple[float, tuple[float, ...]]] = []
    least = alone[WHOLE]
    for share, factors in sorted(alone.items(), reverse=True):
        least = tuple(map(max, factors, least))
        knots.append((share, least))
    return tuple(reversed(knots))
