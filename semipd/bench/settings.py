"""The settings of a run."""

from __future__ import annotations

import os
from dataclasses import dataclass

API_KEYS = {"grpc": "SEMIPD_API_KEY", "openai": "OPENAI_API_KEY"}
"""The environment's variable with the key that a target may ask for, by protocol: no report and no list of processes
shows it."""

DRAIN_S = 60.0
"""Seconds after the last arrival; longer than any request of the traces takes inside its loose SLO."""


@dataclass(frozen=True, slots=True)
class RunSettings:
    """Everything that a run depends on, besides the target itself."""

    target: str
    """grpc://HOST:PORT or openai+http://HOST:PORT/v1."""
    trace: str
    """chat, mixed, long, or a file."""
    rate: float
    """Requests a second."""
    duration_s: float
    """Seconds in which requests arrive; this is also the window over which throughput is measured."""
    seed: int = 0
    """Seed of the arrivals and of the prompts."""
    clients: int | None = None
    """Load processes; default_clients() if absent."""
    model: str | None = None
    """Name of the target's model; needed by OpenAI-compatible targets."""
    vocab_size: int | None = None
    """Prompts are drawn below it. Absent: what the target says, else 32000."""
    scale: float = 1.0
    """All lengths are multiplied by it, for models with a short context."""
    drain_s: float = DRAIN_S
    """Seconds that the client waits for answers after the last arrival."""


def authorization(protocol: str) -> dict[str, str]:
    """The header to send with each request; empty where the environment has no key."""
    key = os.environ.get(API_KEYS[protocol])
    return {"authorization": f"Bearer {key}"} if key else {}


def default_clients() -> int:
    """A quarter of the cores: the other end may be on the same machine."""
    return max(1, min(8, len(os.sched_getaffinity(0)) // 4))
