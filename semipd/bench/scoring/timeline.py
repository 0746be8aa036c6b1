"""Samples of the server's load, as it told them while it ran."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LoadSample:
    """One look at the target, `at_s` seconds after the start of the run."""

    at_s: float
    waiting: int
    prefilling: int
    decoding: int
    used_pages: int
    total_pages: int
    prefill_share: float
    """Percent of the device."""
    decode_share: float
    output_tokens_per_s: float
    """Output tokens a second over the server's own window of 30 s."""
    policy: str
