"""The description of a target that a report keeps."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TargetInfo:
    """The target's description of itself; it may leave fields open."""

    protocol: str
    model: str
    vocab_size: int
    """Prompts are drawn below it."""
    max_context: int | None
    """Prompt and output together, in tokens."""
    counting: str
    """The way in which tokens are counted in its stream."""
    server: dict[str, str]
    """Version, device, policy, partition and the like."""
