"""Least-squares fits of relative errors, so that a short step counts as much as a long one."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[np.float64]

LIKE_THE_REST = 0.03
"""Weight of the wish that all costs of one table slow down alike. It decides where a table has too few points to tell
the costs apart, and hardly counts where it has enough."""
LEAST_FACTOR = 0.2
"""The least factor of one cost, relative to its table's common factor: a fit to noisy points must not make a cost
free."""


def relative_error(expected: Numbers, measured: Numbers) -> float:
    """Returns the sum of the squared relative errors."""
    return float(np.sum((expected / measured - 1) ** 2))


def non_negative(terms: Numbers, measured: Numbers) -> Numbers:
    """Fits factors of at least 0 with which the sum of the terms comes nearest to what was measured.

    `terms`: [points, factors]; `measured`: [points]; returns [factors]. A factor that would be negative is 0, and the
    others are fitted without it.
    """
    factors, used = np.zeros(terms.shape[1]), list(range(terms.shape[1]))
    while used:
        found = np.linalg.lstsq(terms[:, used] / measured[:, None], np.ones(len(measured)), rcond=None)[0]
        if found.min() >= 0:
            factors[used] = found
            break
        del used[int(found.argmin())]
    return factors


def slowdown_factors(costs: Numbers, measured: Numbers) -> tuple[float, ...]:
    """Fits how much longer each cost takes in one table.

    `costs`: [points, costs], what each cost takes on the full device; `measured`: [points].
    """
    whole = costs.sum(axis=1) / measured
    common = max(1e-6, float(whole.sum() / (whole @ whole)))
    wish = np.eye(costs.shape[1]) * np.sqrt(LIKE_THE_REST) / common
    rows = np.vstack([costs / measured[:, None], wish])
    wanted = np.concatenate([np.ones(len(measured)), np.full(costs.shape[1], np.sqrt(LIKE_THE_REST))])
    found = np.linalg.lstsq(rows, wanted, rcond=None)[0]
    return tuple(float(max(factor, LEAST_FACTOR * common)) for factor in found)
