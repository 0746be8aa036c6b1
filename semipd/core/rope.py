"""Reads how a checkpoint describes its rotary position embeddings. The arithmetic is the engine's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from semipd.core.fields import Fields

DEFAULT_THETA = 10_000.0


class RopeKind(Enum):
    DEFAULT = "default"
    LINEAR = "linear"
    DYNAMIC = "dynamic"
    LLAMA3 = "llama3"
    YARN = "yarn"


@dataclass(frozen=True, slots=True)
class RopeConfig:
    """The parameters of a rotation, with the names of transformers' `rope_parameters`. A field that a kind does not use
    keeps its default."""

    kind: RopeKind = RopeKind.DEFAULT
    theta: float = DEFAULT_THETA
    factor: float = 1.0
    original_max_positions: int = 0
    """Tokens of context in pre-training; llama3 and yarn."""
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    attention_factor: float | None = None
    """Factor of cosine and sine (yarn); None: it follows from `factor` and the two `mscale`."""
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    mscale: float = 0.0
    mscale_all_dim: float = 0.0
    truncate: bool = True


OWN_FIELDS: Mapping[RopeKind, frozenset[str]] = {
    RopeKind.DEFAULT: frozenset(),
    RopeKind.LINEAR: frozenset({"factor"}),
    RopeKind.DYNAMIC: frozenset({"factor"}),
    RopeKind.LLAMA3: frozenset({"factor", "original_max_position_embeddings", "low_freq_factor", "high_freq_factor"}),
    RopeKind.YARN: frozenset(
        {
            "factor",
            "original_max_position_embeddings",
            "attention_factor",
            "beta_fast",
            "beta_slow",
            "mscale",
            "mscale_all_dim",
            "truncate",
        }
    ),
}
COMMON_FIELDS = frozenset({"rope_type", "type", "rope_theta", "partial_rotary_factor"})


def parse_rope(config: Fields, max_positions: int) -> RopeConfig:
    """Reads the old layout (`rope_theta` and `rope_scaling`) or that of transformers 5 (`rope_parameters`).

    If both are there, `rope_scaling` wins, and a `rope_theta` inside wins over one outside, as in transformers.
    """
    where = "rope_scaling" if config.within("rope_scaling").names() else "rope_parameters"
    rope = config.within(where)
    kind = _kind(rope)
    for holder in (rope, config):
        if holder.number("partial_rotary_factor", 1.0) != 1.0:
            holder.refuse("partial_rotary_factor", "1.0")
    unknown = sorted(rope.names() - COMMON_FIELDS - OWN_FIELDS[kind])
    if unknown:
        allowed = sorted(COMMON_FIELDS | OWN_FIELDS[kind])
        rope.refuse(unknown[0], f"only {', '.join(allowed)} with rope_type {kind.value!r}")
    theta = rope.number("rope_theta", config.number("rope_theta", DEFAULT_THETA))
    if kind is RopeKind.DEFAULT:
        return RopeConfig(theta=theta)
    if kind in (RopeKind.LINEAR, RopeKind.DYNAMIC):
        return RopeConfig(kind, theta, rope.number("factor"))
    original = _original_positions(config, rope, max_positions)
    if kind is RopeKind.LLAMA3:
        low, high = rope.number("low_freq_factor"), rope.number("high_freq_factor")
        if high <= low:
            rope.refuse("high_freq_factor", f"a number above low_freq_factor ({low:g})")
        return RopeConfig(kind, theta, rope.number("factor"), original, low, high)
    has_attention_factor = rope.raw("attention_factor") is not None
    return RopeConfig(
        kind,
        theta,
        rope.number("factor", max_positions / original),
        original,
        attention_factor=rope.number("attention_factor") if has_attention_factor else None,
        beta_fast=rope.number("beta_fast", 32.0),
        beta_slow=rope.number("beta_slow", 1.0),
        mscale=rope.number("mscale", 0.0, minimum=-1.0),
        mscale_all_dim=rope.number("mscale_all_dim", 0.0, minimum=-1.0),
        truncate=rope.flag("truncate", True),
    )


def _kind(rope: Fields) -> RopeKind:
    name = "rope_type" if rope.raw("rope_type") is not None else "type"
    try:
        return RopeKind(rope.text(name, RopeKind.DEFAULT.value))
    except ValueError:
        rope.refuse(name, ", ".join(kind.value for kind in RopeKind))


def _original_positions(config: Fields, rope: Fields, max_positions: int) -> int:
    """Returns the context of pre-training. As in transformers the field outside wins over the one inside."""
    inside = rope.integer("original_max_position_embeddings", max_positions)
    return config.integer("original_max_position_embeddings", inside)
