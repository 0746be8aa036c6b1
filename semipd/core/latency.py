"""Estimates the time of a prefill pass and of a decode step, by what is in them and on how much of the device they run.

The model is a roofline with few constants. A pass has a fixed cost, a cost for each token (matrix products) and one
for each pair of tokens (attention), and takes never less than its launch. A step costs reading the weights once, and
further a cost for each row (arithmetic) and for each token of context (reading its KV). On a share of the device, and
while the other phase computes too, each of these costs grows by a factor of its own (`Slowdown`).

The constants are never written by hand: `semipd.profiles.latency` fits them to a profile, `semipd.profiles.roofline`
computes them from a device's own data. What a server observes then scales them (`semipd.policies.toolkit.fitting`).

All times are in seconds, all shares in percent of the device. Everything here is a pure function of immutable values.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from semipd.core.config import GRAPH_CONTEXT, GRAPH_FEW_TOKENS

LEAST_SHARE = 0.02
"""The least part of the device that a phase keeps, however much of its share the other phase also uses: without a bound
a time would be infinite."""
REMEMBERED = 1024
"""Pairs of shares whose factors are remembered. Policies choose among a few splits again and again."""


@dataclass(frozen=True, slots=True)
class Scales:
    """Observed over predicted time, by phase and by whether the other phase computed too; None: not observed."""

    prefill_alone: float | None = None
    prefill_shared: float | None = None
    decode_alone: float | None = None
    decode_shared: float | None = None
    launch: float | None = None
    """The factor for `launch_s` and `eager_s`; None: the factor of prefill."""

    def prefill(self, shared: bool) -> float:
        """Returns prefill's factor. A case that was not observed has the factor of the other case."""
        return _first(self.prefill_shared, self.prefill_alone, shared)

    def decode(self, shared: bool) -> float:
        """Returns decode's factor. A case that was not observed has the factor of the other case."""
        return _first(self.decode_shared, self.decode_alone, shared)


def _first(shared: float | None, alone: float | None, is_shared: bool) -> float:
    own, others = (shared, alone) if is_shared else (alone, shared)
    if own is not None:
        return own
    return 1.0 if others is None else others


Knots = tuple[tuple[float, tuple[float, ...]], ...]
"""Factors, one for each cost of a phase, by a fraction of the device; ascending."""


@dataclass(frozen=True, slots=True)
class Slowdown:
    """The factors by which the costs of one phase grow on a share of the device, against all of it alone.

    The factor of a cost is that of its share alone, times that of contention with the other phase. Between two knots
    factors are interpolated on logarithmic scales.
    """

    alone: Knots
    """Factors by the phase's fraction of the device, while the other phase is idle. The last knot is the whole device,
    whose factors are 1. Below the first knot a cost grows as the share shrinks."""
    contended: Knots
    """Further factors by the other phase's fraction, while it computes too. They are constant beyond both ends."""
    overlap: float
    """The part of its time on SMs that both phases may use which the phase gets, 0 to 1."""
    _found: dict[tuple[float, float], tuple[float, ...]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )
    """Factors that were asked for before."""

    def factors(self, share: float, other: float) -> tuple[float, ...]:
        """Returns one factor for each cost. `share` is the phase's own, `other` the other phase's; 0: it is idle."""
        known = self._found.get((share, other))
        if known is None:
            if len(self._found) >= REMEMBERED:
                self._found.clear()
            known = self._found[share, other] = self._compute(share / 100, other / 100)
        return known

    def _compute(self, share: float, other: float) -> tuple[float, ...]:
        if not other:
            return self._on(share)
        exclusive = min(share, max(0.0, 1 - other))
        felt = max(LEAST_SHARE, exclusive + self.overlap * (share - exclusive))
        contention = interpolated(self.contended, other)
        return tuple(a * c for a, c in zip(self._on(felt), contention, strict=True))

    def _on(self, fraction: float) -> tuple[float, ...]:
        least = self.alone[0][0]
        found = interpolated(self.alone, fraction)
        return tuple(factor * least / fraction for factor in found) if fraction < least else found


def interpolated(knots: Knots, at: float) -> tuple[float, ...]:
    """Returns the factors at a fraction; constant beyond both ends."""
    right = bisect_right(knots, at, key=lambda knot: knot[0])
    if right in (0, len(knots)):
        return knots[max(0, right - 1)][1]
    (low, before), (high, after) = knots[right - 1 : right + 1]
    part = math.log(at / low) / math.log(high / low)
    return tuple(a ** (1 - part) * b**part for a, b in zip(before, after, strict=True))


@dataclass(frozen=True, slots=True)
class LatencyModel:
    """The costs of one model on one device."""

    token_s: float
    """Prefill, a token: its matrix products on the full device."""
    batch_s: float
    """Prefill, the fixed part of a pass."""
    launch_s: float
    """Prefill, the least that a pass takes: it reads the weights, or waits for its launches."""
    eager_s: float
    """Prefill, the least that a pass takes whose few tokens attend to a long context: it is not captured as a graph, so
    its kernels are launched one by one."""
    attention_s: float
    """Prefill, a token and each token that it attends to."""
    weights_s: float
    """Decode: reading the weights once, and what else a step costs however few sequences are in it."""
    row_s: float
    """Decode, a sequence: its arithmetic."""
    kv_s: float
    """Decode, a token of context: reading its KV."""
    mixed_batch_s: float
    """The fixed part of a mixed batch."""
    prefill_slowdown: Slowdown
    """One factor: for all of a pass. Its launch takes as long on any share."""
    decode_slowdown: Slowdown
    """Three factors: for the weights, for rows and for KV."""
    tile_tokens: int
    """Tokens: matrix products go in tiles of this size, or captured passes are padded to multiples of it. A pass
    between two multiples costs more for each of its tokens."""
    scales: Scales = field(default_factory=Scales)

    def prefill_s(
        self, tokens: int, context_tokens: int, *, share: float = 100.0, other: float = 0.0, sequences: int = 1
    ) -> float:
        """Returns the seconds of one pass over `tokens` prompt tokens.

        `context_tokens` are attended to at the end of the pass, summed over its `sequences` (as in `Step`), so at
        least `tokens`. `other` is decode's share while it computes too; 0: it is idle.
        """
        if tokens <= 0:
            return 0.0
        pairs = tokens * max(context_tokens - tokens / 2, tokens / 2) / max(1, sequences)
        (slowdown,) = self.prefill_slowdown.factors(share, other)
        scale, launch = self.scales.prefill(other > 0), self.scales.launch
        took = (self.batch_s + tokens * self.token_s + pairs * self.attention_s) * slowdown * scale
        floor = (self.launch_s if _captured(tokens, context_tokens) else self.eager_s) * (
            scale if launch is None else launch
        )
        return took if took > floor else floor

    def passes_s(self, computed: int) -> Callable[[int], float]:
        """Returns `prefill_s` of a pass over one prompt alone on the full device, as a function of the pass's tokens.

        `computed`: tokens of the prompt that were computed before. For callers that ask for many sizes.
        """
        scale, floor_s = self.scales.prefill(False), self.floor_s()
        batch_s, attention_s = self.batch_s * scale, self.attention_s * scale
        token_s = self.token_s * scale + computed * attention_s
        half_s = attention_s / 2
        if _captured(1, computed + GRAPH_FEW_TOKENS):  # then any number of tokens after these is, too
            return lambda tokens: max(floor_s, batch_s + tokens * (token_s + tokens * half_s))
        eager_s = self.eager_s * (scale if self.scales.launch is None else self.scales.launch)
        return lambda tokens: max(
            floor_s if _captured(tokens, computed + tokens) else eager_s, batch_s + tokens * (token_s + tokens * half_s)
        )

    def floor_s(self, other: float = 0.0) -> float:
        """Returns the least that a pass takes, whatever is in it."""
        return self.launch_s * (self.scales.prefill(other > 0) if self.scales.launch is None else self.scales.launch)

    def fixed_s(self, *, share: float = 100.0, other: float = 0.0) -> float:
        """Returns the fixed part of a pass, which it costs whatever is in it."""
        (slowdown,) = self.prefill_slowdown.factors(share, other)
        return self.batch_s * slowdown * self.scales.prefill(other > 0)

    def prompt_s(self, tokens: int, computed: int, *, share: float = 100.0, other: float = 0.0) -> float:
        """Returns what the next `tokens` tokens of one prompt add to passes that run anyway."""
        work = tokens * self.token_s + tokens * (computed + tokens / 2) * self.attention_s
        (slowdown,) = self.prefill_slowdown.factors(share, other)
        return work * slowdown * self.scales.prefill(other > 0)

    def decode_s(self, rows: int, context_tokens: int, *, share: float = 100.0, other: float = 0.0) -> float:
        """Returns the seconds of one step of `rows` sequences that attend to `context_tokens` tokens in all.

        `other` is prefill's share while it computes too; 0: it is idle.
        """
        if rows <= 0:
            return 0.0
        weights, row, kv = self.decode_slowdown.factors(share, other)
        step = self.weights_s * weights + rows * self.row_s * row + context_tokens * self.kv_s * kv
        return step * self.scales.decode(other > 0)

    def mixed_s(self, tokens: int, computed: int, rows: int, context_tokens: int) -> float:
        """Returns the seconds of one batch of a prompt chunk and a decode step on the full device.

        The weights are read once for both, and a row costs as much arithmetic as a token of the prompt. `computed`:
        tokens of the prompt that were computed before.
        """
        arithmetic = (tokens + rows) * self.token_s + tokens * (computed + tokens / 2) * self.attention_s
        batch = max(self.weights_s, self.mixed_batch_s + arithmetic) * self.scales.prefill(False)
        return batch + context_tokens * self.kv_s * self.scales.decode(False)


def _captured(tokens: int, context_tokens: int) -> bool:
    """Returns whether an engine captures such a pass, as far as the context goes."""
    return context_tokens <= GRAPH_CONTEXT * max(tokens, GRAPH_FEW_TOKENS)


def even_slowdown(costs: int, fractions: Sequence[float] = (1.0,)) -> Slowdown:
    """Returns a slowdown that is 1 over the share for each of `costs` costs, and knows of no contention."""
    knots = tuple((fraction, (1 / fraction,) * costs) for fraction in fractions)
    return Slowdown(alone=knots, contended=((1.0, (1.0,) * costs),), overlap=0.5)


NOMINAL = LatencyModel(
    token_s=20e-6,
    batch_s=2e-3,
    launch_s=5e-3,
    eager_s=10e-3,
    attention_s=1e-9,
    weights_s=5e-3,
    row_s=20e-6,
    kv_s=25e-9,
    mixed_batch_s=3e-3,
    tile_tokens=128,
    prefill_slowdown=even_slowdown(1),
    decode_slowdown=even_slowdown(3),
)
"""A device that does not exist, in round figures: for snapshots that somebody makes by hand and whose times do not
matter. Neither a server that serves nor the simulator uses it."""
