"""How long a prefill batch and a decode step take, by what is in them and on how much of the device they run.

A roofline with few constants. Time under share r is 1/r of the full device's where arithmetic is the limit (semi-PD,
section 5) and saturates where memory bandwidth is: a quarter of an H200's SMs reads three quarters of its bandwidth.
While the other phase computes as well, the two share bandwidth and power. The constants are those of Llama-3-8B in
bf16 on one H200; for another model or device they are scaled to the steps that were observed
(`semipd.policies.toolkit.fitting`).

All times in seconds, shares in percent of the device. Everything here is a pure function of immutable values.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache


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
    own, others = (shared, alone) if is_shared else (alone, shared)
    if own is not None:
        return own
    return 1.0 if others is None else others


@dataclass(frozen=True, slots=True)
class LatencyModel:
    """The defaults reproduce the tables of one H200 within 15 % (tests/unit/policies/toolkit/test_latency.py)."""

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

    def passes_s(self, computed: int) -> Callable[[int], float]:
        """`prefill_s` of a batch of one prompt with so many tokens computed, alone on the full device, by its tokens:
        for who asks of many sizes."""
        scale, floor_s = self.scales.prefill(False), self.floor_s()
        batch_s, attention_s = self.batch_s * scale, self.attention_s * scale
        token_s = self.token_s * scale + computed * attention_s
        half_s = attention_s / 2
        return lambda tokens: max(floor_s, batch_s + tokens * (token_s + tokens * half_s))

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
        r, weights, kv = _decode_slowdown(share, other)
        step = math.hypot(self.weights_s * weights, rows * self.row_s / r) + context_tokens * self.kv_s * kv
        return step * self.scales.decode(other > 0)

    def mixed_s(self, tokens: int, computed: int, rows: int, context_tokens: int) -> float:
        """One batch of a prompt chunk and a decode step on the full device: the weights are read once for both."""
        arithmetic = tokens * self.token_s + tokens * (computed + tokens / 2) * self.attention_s + rows * self.row_s
        kv = context_tokens * self.kv_s
        return (self.batch_s + max(self.weights_s, arithmetic)) * self.scales.prefill(False) + (
            kv * self.scales.decode(False)
        )


# Policies ask for the few shares that they choose among again and again.
@lru_cache(maxsize=1024)
def _prefill_slowdown(share: float, other: float) -> float:
    """Against the full device with nobody else on it."""
    r = share / 100
    if not other:
        return math.pow(r, -0.87)  # fewer SMs run at a higher clock: half of them is more than half of the device
    alone = max(0.0, 1 - other / 100)
    exclusive = min(r, alone)
    r = max(0.02, exclusive + 0.85 * (r - exclusive))  # the arithmetic of prefill wins most of what both may use
    return math.pow(r, -0.87) / (0.99 - 0.215 * r)


@lru_cache(maxsize=1024)
def _decode_slowdown(share: float, other: float) -> tuple[float, float, float]:
    """The fraction of the device that decode feels, and how much longer it reads the weights, and the KV.

    Of the SMs that both may use prefill holds most, of all SMs nearly all.
    """
    r = share / 100
    if not other:
        saturated = math.sqrt(1 + (0.2 / r) ** 2)
        return r, saturated, saturated
    exclusive = min(r, max(0.0, 1 - other / 100))
    r = max(0.02, exclusive + 0.6 * exclusive * (r - exclusive))
    return r, max(1.5, math.sqrt(1 + (0.2 / r) ** 2)), max(1.4, 0.37 + 0.54 / r)
