"""How long a prefill batch and a decode step take, by what is in them and on how much of the device they run.

A roofline with few constants. Time under share r is 1/r of the full device's where arithmetic is the limit (semi-PD,
section 5) and saturates where memory bandwidth is: a quarter of an H200's SMs reads three quarters of its bandwidth.
While the other phase computes as well, the two share bandwidth and power. The constants are those of Llama-3-8B in
bf16 on one H200; for another model or device `refitted` scales them to the steps that were observed.

All times in seconds, shares in percent of the device. Everything here is a pure function of immutable values.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from statistics import median

from semipd.core.partition import FULL, Mode, Phase, Shares
from semipd.core.snapshot import Step

FITTED_TO = 48
"""Steps of one kind, the latest, that a scale factor is the median of."""
FEWEST = 4
"""Steps of one kind below which its factor stays as it is."""
BOUND = 300.0
"""A factor stays within 1/300 and 300: room for a small model or a CPU, none for a clock that jumped."""


@dataclass(frozen=True, slots=True)
class Scales:
    """Observed over predicted, by phase and by whether the other phase computed too; None: not observed."""

    prefill_alone: float | None = None
    prefill_shared: float | None = None
    decode_alone: float | None = None
    decode_shared: float | None = None
    launch: float | None = None
    """Of `launch_s`; None: as prefill."""

    def prefill(self, shared: bool) -> float:
        """What was not observed follows the phase's other case."""
        return _first(self.prefill_shared, self.prefill_alone, shared)

    def decode(self, shared: bool) -> float:
        return _first(self.decode_shared, self.decode_alone, shared)


def _first(shared: float | None, alone: float | None, is_shared: bool) -> float:
    for value in (shared, alone) if is_shared else (alone, shared):
        if value is not None:
            return value
    return 1.0


@dataclass(frozen=True, slots=True)
class LatencyModel:
    """The defaults reproduce the tables of one H200 within 15 % (tests/unit/policies/test_latency.py)."""

    token_s: float = 24.2e-6
    """Prefill, a token: GEMMs on the full device."""
    batch_s: float = 1.0e-3
    """Prefill, a batch."""
    launch_s: float = 11.8e-3
    """Prefill, the least that a batch takes: its kernels are launched one by one."""
    attention_s: float = 0.65e-9
    """Prefill, a token and each token that it attends to."""
    weights_s: float = 5.1e-3
    """Decode: reading the weights once."""
    row_s: float = 0.0426e-3
    """Decode, a sequence: its arithmetic."""
    kv_s: float = 29.5e-9
    """Decode, a token of context: reading its KV."""
    scales: Scales = field(default_factory=Scales)

    def prefill_s(
        self, tokens: int, context_tokens: int, *, share: float = 100.0, other: float = 0.0, sequences: int = 1
    ) -> float:
        """One batch of `tokens` prompt tokens.

        `context_tokens` are attended to at the end of the batch, summed over its `sequences` (as in `Step`), so at
        least `tokens`. `other` is decode's share while it computes too; 0: it is idle.
        """
        if tokens <= 0:
            return 0.0
        pairs = tokens * max(context_tokens - tokens / 2, tokens / 2) / max(1, sequences)
        work = (tokens * self.token_s + pairs * self.attention_s) * _prefill_slowdown(share, other)
        return max(self.floor_s(other), (self.batch_s + work) * self.scales.prefill(other > 0))

    def floor_s(self, other: float = 0.0) -> float:
        """The least that a prefill batch takes, whatever is in it."""
        return self.launch_s * (self.scales.prefill(other > 0) if self.scales.launch is None else self.scales.launch)

    def prompt_s(self, tokens: int, computed: int, *, share: float = 100.0, other: float = 0.0) -> float:
        """What the next `tokens` tokens of one prompt add to batches that run anyway."""
        work = tokens * self.token_s + tokens * (computed + tokens / 2) * self.attention_s
        return work * _prefill_slowdown(share, other) * self.scales.prefill(other > 0)

    def decode_s(self, rows: int, context_tokens: int, *, share: float = 100.0, other: float = 0.0) -> float:
        """One step of `rows` sequences that attend to `context_tokens` in all. `other` is prefill's share; 0: idle."""
        if rows <= 0:
            return 0.0
        r = _decode_fraction(share, other)
        saturated = math.sqrt(1 + (0.2 / r) ** 2)
        weights = self.weights_s * (max(1.5, saturated) if other else saturated)
        kv = context_tokens * self.kv_s * (max(1.4, 0.37 + 0.54 / r) if other else saturated)
        step = math.hypot(weights, rows * self.row_s / r) + kv
        return step * self.scales.decode(other > 0)

    def mixed_s(self, tokens: int, computed: int, rows: int, context_tokens: int) -> float:
        """One batch of a prompt chunk and a decode step on the full device: the weights are read once for both."""
        arithmetic = tokens * self.token_s + tokens * (computed + tokens / 2) * self.attention_s + rows * self.row_s
        kv = context_tokens * self.kv_s
        return (self.batch_s + max(self.weights_s, arithmetic)) * self.scales.prefill(False) + (
            kv * self.scales.decode(False)
        )


def _prefill_slowdown(share: float, other: float) -> float:
    """Against the full device with nobody else on it."""
    r = share / 100
    if not other:
        return math.pow(r, -0.87)  # fewer SMs run at a higher clock: half of them is more than half of the device
    alone = max(0.0, 1 - other / 100)
    exclusive = min(r, alone)
    r = max(0.02, exclusive + 0.85 * (r - exclusive))  # the arithmetic of prefill wins most of what both may use
    return math.pow(r, -0.87) / (0.99 - 0.215 * r)


def _decode_fraction(share: float, other: float) -> float:
    """Of the device, as decode feels it: of the SMs that both may use prefill holds most, of all SMs nearly all."""
    r = share / 100
    if not other:
        return r
    exclusive = min(r, max(0.0, 1 - other / 100))
    return max(0.02, exclusive + 0.6 * exclusive * (r - exclusive))


def with_company(steps: Sequence[Step]) -> list[tuple[Step, bool]]:
    """Each step, and whether the other phase computed for at least half of it. Linear in the number of steps."""
    found: list[tuple[Step, bool]] = []
    by_phase = {phase: [s for s in steps if s.phase is phase] for phase in Phase}
    for phase, mine in by_phase.items():
        others = by_phase[Phase.DECODE if phase is Phase.PREFILL else Phase.PREFILL]
        first = 0
        for step in mine:
            start = step.end_s - step.duration_s
            while first < len(others) and others[first].end_s <= start:
                first += 1
            busy, at = 0.0, first
            while at < len(others) and others[at].end_s - others[at].duration_s < step.end_s:
                other = others[at]
                busy += min(step.end_s, other.end_s) - max(start, other.end_s - other.duration_s)
                at += 1
            found.append((step, busy >= step.duration_s / 2))
    return found


def refitted(model: LatencyModel, steps: Sequence[Step]) -> LatencyModel:
    """The model with its scale factors fitted to `steps`, oldest first as the server observes them.

    Each factor is the median of observed over predicted of the latest steps of its kind, so that a few outliers move
    nothing, and is bounded. A kind that too few steps are of keeps the factor that it had. Small prefill batches, which
    take as long as their launch, say how long that is, once larger ones say how long the work is.
    """
    plain = replace(model, scales=Scales())
    steps = [step for step in steps if step.mode is not Mode.MIXED]  # each tells of both phases at once
    ratios: dict[tuple[Phase, bool], list[float]] = {(p, c): [] for p in Phase for c in (False, True)}
    small: list[tuple[bool, float]] = []  # batches that only their launch makes so long, it is thought
    for step, company in reversed(with_company(steps)):
        expected = expected_s(plain, step, company)
        if expected <= 0 or step.duration_s <= 0:
            continue
        ratio, kind = step.duration_s / expected, ratios[step.phase, company]
        if step.phase is Phase.PREFILL and expected <= plain.launch_s:
            small.append((company, ratio))
        elif len(kind) < FITTED_TO:
            kind.append(ratio)
    before = model.scales
    launch = before.launch
    if max(len(ratios[Phase.PREFILL, company]) for company in (False, True)) >= FEWEST:
        launch = _factor([ratio for _, ratio in small[:FITTED_TO]], before.launch)
    elif launch is None:  # nothing but small ones: they tell of all, as nobody else does
        for company, ratio in small[: 2 * FITTED_TO]:
            ratios[Phase.PREFILL, company].append(ratio)
    return replace(
        model,
        scales=Scales(
            prefill_alone=_factor(ratios[Phase.PREFILL, False], before.prefill_alone),
            prefill_shared=_factor(ratios[Phase.PREFILL, True], before.prefill_shared),
            decode_alone=_factor(ratios[Phase.DECODE, False], before.decode_alone),
            decode_shared=_factor(ratios[Phase.DECODE, True], before.decode_shared),
            launch=launch,
        ),
    )


def _factor(ratios: Sequence[float], before: float | None) -> float | None:
    return min(BOUND, max(1 / BOUND, median(ratios))) if len(ratios) >= FEWEST else before


def expected_s(model: LatencyModel, step: Step, company: bool) -> float:
    """What the model says of an observed step. Without company a phase has the whole device, whatever its share."""
    shares = step.shares if company else FULL
    if step.phase is Phase.PREFILL:
        other = shares.decode if company else 0.0
        return model.prefill_s(
            step.tokens, step.context_tokens, share=shares.prefill, other=other, sequences=step.sequences
        )
    other = shares.prefill if company else 0.0
    return model.decode_s(step.sequences, step.context_tokens, share=shares.decode, other=other)


def split(decode_sms: int, sms: int = 132) -> Shares:
    """The shares under which decode has the first `decode_sms` SMs and prefill the rest."""
    return Shares(prefill=100 * (sms - decode_sms) / sms, decode=100 * decode_sms / sms)
