"""The TPOT target: how soon each next token must come so that the running sequences stay within their SLOs.

Let a sequence have n output tokens, the first at t₁ and the last at tₙ, and let s be the TPOT of its SLO, less a
margin. Then its lag is L = tₙ − t₁ − s · (n − 1); below 0 it is a lead. If its next H tokens come every p seconds, its
mean TPOT is within s after them where

    p ≤ s − L / H

A sequence that lags catches up over H = `catch_up_tokens`; one that leads uses up its lead over H = `burst_tokens`.
Both are bounded. Of the sequences with one SLO, a percentile of the lags sets their p; the target is the smallest p of
all SLOs.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from semipd.core.snapshot import RunningSequence
from semipd.policies.builtin.adaptive.tuning import Tuning


@dataclass(frozen=True, slots=True)
class TpotTarget:
    """Seconds between two tokens of a sequence, at most."""

    now_s: float
    """The target of the next tokens: the lags and leads of the running sequences are in it."""
    lasting_s: float
    """The target in the long run: the tightest TPOT of an SLO, less the margin."""


def tpot_target(running: Sequence[RunningSequence], tuning: Tuning) -> TpotTarget:
    """Returns the target that follows from the running sequences, of which there is at least one."""
    by_slo: defaultdict[float | None, list[RunningSequence]] = defaultdict(list)
    for one in [r for r in running if r.output_tokens >= tuning.warm_up_tokens] or running:
        by_slo[one.slo.tpot_s].append(one)
    targets: list[float] = []
    slos: list[float] = []
    for tpot_s, sequences in by_slo.items():
        slo_s = (tuning.deadlines.assumed_tpot_s if tpot_s is None else tpot_s) * (1 - tuning.tpot_margin)
        lags = [r.last_token_s - r.first_token_s - slo_s * (r.output_tokens - 1) for r in sequences]
        lags.sort(reverse=True)  # the larger the lag, the tighter the target
        targets.append(next_tpot_s(slo_s, lags[int((len(lags) - 1) * tuning.lag_percentile)], tuning))
        slos.append(slo_s)
    return TpotTarget(now_s=min(targets), lasting_s=min(slos))


def next_tpot_s(slo_s: float, lag_s: float, tuning: Tuning) -> float:
    """Returns the TPOT under which a sequence with this lag is within its SLO again: p of the formula, bounded."""
    if lag_s <= 0:
        return min(tuning.burst_limit * slo_s, slo_s - lag_s / tuning.burst_tokens)
    return max(slo_s * (1 - tuning.catch_up_limit), slo_s - lag_s / tuning.catch_up_tokens)
