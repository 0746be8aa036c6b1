"""Rotary position embeddings, number for number as transformers computes them.

Dynamic NTK makes the frequencies depend on the length of the sequence. In transformers' `generate` a prompt longer than
`max_position_embeddings` is rotated as a whole with the frequencies of its own length. Each later token is rotated with
those of the sequence up to and including it, and the KV cache stays as it was rotated. So the frequencies of a token
follow from its position and the length of its prompt alone: length = max(prompt, position + 1,
max_position_embeddings). This module computes that rule, for any cut into chunks, any batch and any resumption.
(transformers' own state outlives a request: after a long one, a prompt of exactly `max_position_embeddings` tokens
still gets the long one's frequencies. That is not imitated; nor is the influence of the sequences of a batch on one
another.)
"""

from __future__ import annotations

import math

import torch

from semipd.core.rope import RopeConfig, RopeKind


class Rotary:
    """Tables of cosine and sine, [positions, head_dim] each. They grow as positions are reached.

    The sine carries the signs of the rotation, so that rotated = x · cos + swap_halves(x) · sin.
    """

    def __init__(self, config: RopeConfig, head_dim: int, max_positions: int, like: torch.Tensor) -> None:
        """Makes empty tables with the type and device of `like`."""
        self._config = config
        self._head_dim = head_dim
        self._max_positions = max_positions
        self._like = like
        self._frequencies, self._scale = _frequencies(config, head_dim)
        self._cos = self._sin = like.new_empty((0, head_dim))

    def at(self, positions: torch.Tensor, highest: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns cosine and sine, [tokens, head_dim] each. `highest` is the greatest of `positions`."""
        if highest >= len(self._cos):
            self._extend(highest + 1)
        return self._cos.index_select(0, positions), self._sin.index_select(0, positions)

    def long_prompt(self, start: int, end: int, prompt: int) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Returns cosine and sine of positions start..end of a prompt that dynamic NTK rotates as a whole; None: `at`
        does."""
        if self._config.kind is not RopeKind.DYNAMIC or prompt <= self._max_positions:
            return None
        positions = torch.arange(start, end, dtype=torch.float32)
        within = torch.clamp(positions + 1, min=prompt)
        return self._turn(positions[:, None] * self._dynamic(within))

    def _extend(self, positions: int) -> None:
        """Extends the tables, at least to twice their length, so that growing costs little however often it happens."""
        count = max(positions, 2 * len(self._cos), 256)
        at = torch.arange(count, dtype=torch.float32)
        frequencies = self._dynamic(at + 1) if self._config.kind is RopeKind.DYNAMIC else self._frequencies
        self._cos, self._sin = self._turn(at[:, None] * frequencies)

    def _turn(self, angles: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns cosine and sine of angles [positions, head_dim / 2]."""
        cos, sin = angles.cos() * self._scale, angles.sin() * self._scale
        return torch.cat((cos, cos), -1).to(self._like), torch.cat((-sin, sin), -1).to(self._like)

    def _dynamic(self, lengths: torch.Tensor) -> torch.Tensor:
        """Returns the frequencies for sequences of these lengths, [lengths, head_dim / 2]."""
        dim, factor = self._head_dim, self._config.factor
        lengths = lengths.clamp(min=self._max_positions)
        stretched = (factor * lengths / self._max_positions) - (factor - 1)
        base = self._config.theta * stretched ** (dim / (dim - 2))
        return 1.0 / (base[:, None] ** _exponents(dim))


def rotate(heads: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Returns heads [tokens, heads, head_dim] rotated by cosine and sine of [tokens, 1, head_dim]."""
    swapped = torch.roll(heads, heads.shape[-1] // 2, -1)
    return (heads * cos).addcmul_(swapped, sin)


def _exponents(dim: int) -> torch.Tensor:
    return torch.arange(0, dim, 2, dtype=torch.float32) / dim


def _frequencies(config: RopeConfig, dim: int) -> tuple[torch.Tensor, float]:
    """Returns the frequencies [head_dim / 2], and the scale of cosine and sine."""
    plain = 1.0 / (config.theta ** _exponents(dim))
    match config.kind:
        case RopeKind.LINEAR:
            return plain / config.factor, 1.0
        case RopeKind.LLAMA3:
            return _llama3(config, plain), 1.0
        case RopeKind.YARN:
            return _yarn(config, dim), _yarn_scale(config)
        case _:
            return plain, 1.0


def _llama3(config: RopeConfig, plain: torch.Tensor) -> torch.Tensor:
    """Stretches long waves, keeps short ones and blends those between (Llama 3.1)."""
    original, low, high = config.original_max_positions, config.low_freq_factor, config.high_freq_factor
    waves = 2 * math.pi / plain
    stretched = torch.where(waves > original / low, plain / config.factor, plain)
    smooth = (original / waves - low) / (high - low)
    blended = (1 - smooth) * stretched / config.factor + smooth * stretched
    between = ~(waves < original / high) & ~(waves > original / low)
    return torch.where(between, blended, stretched)


def _yarn(config: RopeConfig, dim: int) -> torch.Tensor:
    """Computes "NTK by parts" (YaRN, arXiv 2309.00071, section 3.2)."""

    def dimension(rotations: float) -> float:
        """Returns the dimension that makes this many rotations within the original context."""
        turns = config.original_max_positions / (rotations * 2 * math.pi)
        return dim * math.log(turns) / (2 * math.log(config.theta))

    low, high = dimension(config.beta_fast), dimension(config.beta_slow)
    if config.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    if low == high:
        high += 0.001  # the ramp must not divide by zero
    ramp = ((torch.arange(dim // 2, dtype=torch.float32) - low) / (high - low)).clamp(0, 1)
    kept = 1 - ramp
    waves = config.theta ** _exponents(dim)
    return 1.0 / (config.factor * waves) * (1 - kept) + 1.0 / waves * kept


def _yarn_scale(config: RopeConfig) -> float:
    """Returns the attention temperature (YaRN, section 3.4)."""

    def mscale(weight: float) -> float:
        return 1.0 if config.factor <= 1 else 0.1 * weight * math.log(config.factor) + 1.0

    if config.attention_factor is not None:
        return config.attention_factor
    if config.mscale and config.mscale_all_dim:
        return mscale(config.mscale) / mscale(config.mscale_all_dim)
    return mscale(1.0)
