"""Fits the latency model that policies think with to the points of a profile.

On the full device the constants are fitted to the points of each phase alone, and the fixed part of mixed batches to
theirs. `semipd.profiles.slowdown` fits what a share of the device and the other phase cost.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np

from semipd.core.config import GRAPH_CONTEXT, GRAPH_FEW_TOKENS
from semipd.core.latency import LatencyModel
from semipd.profiles.fitting import Numbers, non_negative, relative_error
from semipd.profiles.profile import SHIPPED, DecodePoint, MixedPoint, PrefillPoint, Profile, load_profile
from semipd.profiles.roofline import TILE
from semipd.profiles.slowdown import ShareTable, fit_slowdown

LAUNCH_BOUND = 4
"""The most of the shortest passes that are tried as bound by their launch."""
NEVER_FREE_MS = 1e-9
"""A cost that the points do not show is this small, not 0: rates are computed from costs."""
EAGER = 1.15
"""A pass over a long context that takes longer than fitted by this factor is bound by its launches."""


def latency_model(profile: Profile) -> LatencyModel:
    """Returns the model whose constants fit the profile's points."""
    sms = profile.gpu.sms
    passes, steps = _alone(profile.prefill, sms), _alone(profile.decode, sms)
    launch, pass_ms = _fit_passes([p for p in passes if not _eager(p)] or passes)
    step_ms = np.maximum(NEVER_FREE_MS, non_negative(_step_terms(steps), _ms(steps)))
    batch, token, attention = map(float, pass_ms)
    weights, row, kv = map(float, step_ms)
    return LatencyModel(
        token_s=token / 1000,
        batch_s=batch / 1000,
        launch_s=launch / 1000,
        eager_s=_fit_eager([p for p in passes if _eager(p)], launch, pass_ms) / 1000,
        attention_s=attention / 1000,
        weights_s=weights / 1000,
        row_s=row / 1000,
        kv_s=kv / 1000,
        mixed_batch_s=_fit_mixed(profile.mixed, pass_ms, kv) / 1000,
        prefill_slowdown=fit_slowdown([_pass_table(t, sms, pass_ms) for t in profile.prefill]),
        decode_slowdown=fit_slowdown([_step_table(t, sms, step_ms) for t in profile.decode]),
        tile_tokens=tile(profile.buckets.prefill),
    )


@cache
def shipped_model() -> LatencyModel:
    """Returns the model of the profile that ships, for simulations and tests that name no device."""
    return latency_model(load_profile(SHIPPED))


def tile(buckets: Sequence[int]) -> int:
    """Returns the tokens of a tile: the widest step between two sizes that passes are padded to, or where they are not
    padded that of the GPU's matrix products."""
    return max((b - a for a, b in pairwise(buckets)), default=TILE)


def _alone(tables: Iterable[Any], sms: int) -> Any:
    return next(table.points for table in tables if (table.sms, table.other_sms) == (sms, 0))


def _ms(points: Iterable[Any]) -> Numbers:
    return np.array([p.ms for p in points])


# --- passes -----------------------------------------------------------------------------------------------------------


def _pass_terms(points: Sequence[PrefillPoint]) -> Numbers:
    """[points, 3]: the fixed part, tokens, pairs of tokens."""
    return np.array([(1.0, p.tokens, p.tokens * (p.start + p.tokens / 2)) for p in points])


def _eager(point: PrefillPoint) -> bool:
    return point.start + point.tokens > GRAPH_CONTEXT * max(point.tokens, GRAPH_FEW_TOKENS)


def _fit_passes(points: Sequence[PrefillPoint]) -> tuple[float, Numbers]:
    """Returns the milliseconds of the launch, and those of the fixed part, of a token and of a pair.

    How many of the shortest passes are bound by their launch is not known: the number that fits best is taken.
    """
    rising = sorted(points, key=lambda p: p.ms)
    measured, terms = _ms(rising), _pass_terms(rising)
    found = []
    for bound in range(max(0, min(LAUNCH_BOUND, len(rising) - terms.shape[1])) + 1):
        factors = non_negative(terms[bound:], measured[bound:])
        launch = float(np.mean(measured[:bound])) if bound else float(factors[0])
        found.append((relative_error(np.maximum(launch, terms @ factors), measured), launch, factors))
    _, launch, factors = min(found, key=lambda each: each[0])
    return max(NEVER_FREE_MS, launch), np.maximum(NEVER_FREE_MS, factors)


def _fit_eager(points: Sequence[PrefillPoint], launch: float, pass_ms: Numbers) -> float:
    """Returns the least milliseconds of a pass that is not captured: that of a launch, where no point tells."""
    fitted = _pass_terms(points) @ pass_ms if points else ()
    return max([launch, *(p.ms for p, ms in zip(points, fitted, strict=True) if p.ms > EAGER * ms)])


def _pass_table(table: Any, sms: int, pass_ms: Numbers) -> ShareTable:
    terms = _pass_terms(table.points) * pass_ms
    return ShareTable(table.sms / sms, table.other_sms / sms, terms.sum(axis=1, keepdims=True), _ms(table.points))


# --- steps ------------------------------------------------------------------------------------------------------------


def _step_terms(points: Sequence[DecodePoint]) -> Numbers:
    """[points, 3]: the weights, rows, tokens of context."""
    return np.array([(1.0, p.rows, p.rows * p.context) for p in points])


def _step_table(table: Any, sms: int, step_ms: Numbers) -> ShareTable:
    terms = _step_terms(table.points) * step_ms
    return ShareTable(table.sms / sms, table.other_sms / sms, terms, _ms(table.points))


# --- mixed batches ----------------------------------------------------------------------------------------------------


def _fit_mixed(points: Sequence[MixedPoint], pass_ms: Numbers, kv: float) -> float:
    """Returns the milliseconds of a mixed batch's fixed part; those of a pass where no mixed batch was measured."""
    batch, token, attention = map(float, pass_ms)
    if not points:
        return batch
    measured = _ms(points)
    tokens = np.array([p.tokens + p.rows for p in points])
    pairs = np.array([p.tokens * (p.start + p.tokens / 2) for p in points])
    context = np.array([p.rows * p.context for p in points])
    left = 1 - (tokens * token + pairs * attention + context * kv) / measured
    return max(0.0, float(left @ (1 / measured) / np.sum(1 / measured**2)))
