"""What a policy sees: the state of a server at one moment, immutable. All times in seconds on one clock."""

from __future__ import annotations

from dataclasses import dataclass

from semipd.core.partition import FULL, Mode, Phase, Shares
from semipd.core.request import Slo

SequenceId = int
"""Names one sequence (a sample of a request) for the life of a server; rises with arrival."""


@dataclass(frozen=True, slots=True)
class WaitingSequence:
    """Accepted, and its first token not yet sampled (or preempted, and to be computed again)."""

    sequence: SequenceId
    request_id: str
    arrival_s: float
    prompt_tokens: int
    """Tokens to compute before the next one is sampled: the prompt, and for a preempted sequence its output so far."""
    computed_tokens: int
    """Of these, tokens whose KV is in the pool."""
    in_flight_tokens: int
    """Of the rest, tokens in a prefill batch that the worker has not answered. While above 0 it can't be planned."""
    output_tokens: int
    """Sampled before a preemption; 0 for a new sequence."""
    max_tokens: int
    priority: int
    slo: Slo
    deadline_s: float | None
    """The moment after which the client no longer waits."""
    preemptions: int = 0

    @property
    def remaining_tokens(self) -> int:
        return self.prompt_tokens - self.computed_tokens - self.in_flight_tokens


@dataclass(frozen=True, slots=True)
class RunningSequence:
    """In the decode batch, or ready for it."""

    sequence: SequenceId
    request_id: str
    arrival_s: float
    first_token_s: float
    last_token_s: float
    context_tokens: int
    output_tokens: int
    max_tokens: int
    priority: int
    slo: Slo


@dataclass(frozen=True, slots=True)
class PageUse:
    free: int
    total: int
    page_size: int
    """Tokens."""

    def pages_for(self, tokens: int) -> int:
        return -(-tokens // self.page_size)


@dataclass(frozen=True, slots=True)
class Step:
    """One prefill batch or decode step, as it was observed."""

    phase: Phase
    end_s: float
    duration_s: float
    sequences: int
    tokens: int
    """Prefill: prompt tokens computed. Decode: tokens sampled."""
    context_tokens: int
    """Tokens attended to, over the batch."""
    shares: Shares
    mode: Mode = Mode.SPLIT


@dataclass(frozen=True, slots=True)
class FirstToken:
    """A TTFT as it was observed."""

    at_s: float
    ttft_s: float
    prompt_tokens: int
    slo: Slo


@dataclass(frozen=True, slots=True)
class Completion:
    """A sequence that ended; `tpot_s` is None below two output tokens."""

    at_s: float
    tpot_s: float | None
    output_tokens: int
    slo: Slo


@dataclass(frozen=True, slots=True)
class Observed:
    """The latest observations, oldest first; each tuple is bounded by the server (256 entries)."""

    steps: tuple[Step, ...] = ()
    first_tokens: tuple[FirstToken, ...] = ()
    completions: tuple[Completion, ...] = ()


@dataclass(frozen=True, slots=True)
class Limits:
    """What the engine can take. A plan beyond it is refused."""

    max_batch_tokens: int
    """Prompt tokens in one prefill batch."""
    max_running: int
    """Sequences in the decode batch."""
    modes: frozenset[Mode] = frozenset({Mode.SPLIT})


@dataclass(frozen=True, slots=True)
class Snapshot:
    now_s: float
    waiting: tuple[WaitingSequence, ...]
    """By arrival."""
    running: tuple[RunningSequence, ...]
    """By arrival."""
    pages: PageUse
    limits: Limits
    shares: Shares = FULL
    """As granted."""
    mode: Mode = Mode.SPLIT
    prefill_batches: int = 0
    """Plans that the prefill worker has and has not answered."""
    observed: Observed = Observed()
