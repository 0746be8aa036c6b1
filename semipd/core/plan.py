"""The answers of a policy: an admission for each request that arrives, and plans. All values are immutable."""

from __future__ import annotations

from dataclasses import dataclass

from semipd.core.partition import Mode, Shares
from semipd.core.snapshot import SequenceId


@dataclass(frozen=True, slots=True)
class Admission:
    """Accepts a request, or refuses it with DEADLINE_UNMEETABLE."""

    accept: bool = True
    why: str = ""
    """The reason for a refusal, which the client reads."""
    retry_after_s: float | None = None
    """Seconds after which another try may succeed; None: not known."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """The next `tokens` tokens of a waiting sequence's prompt."""

    sequence: SequenceId
    tokens: int


@dataclass(frozen=True, slots=True)
class Plan:
    """Says what runs now, and on how much of the device. It holds until the next plan."""

    prefill: tuple[Chunk, ...] = ()
    """One batch for the prefill worker, which computes it in one forward pass; empty: nothing now. The pages that its
    chunks need must be free, and all its tokens together within `limits.max_batch_tokens`."""
    decode_limit: int | None = None
    """The most sequences in the decode batch at once; None: the engine's limit."""
    shares: Shares | None = None
    """The shares of the device; None: they stay as they are."""
    mode: Mode = Mode.SPLIT
    """The way in which the phases use the device. `Mode.SPLIT` takes its place where the engine does not have it
    (`limits.modes`)."""
    step_tokens: int | None = None
    """The most prompt tokens for each decode step. `Mode.TURNS`: what prefill may compute between two steps, in as many
    batches as there are; a larger number shortens the wait of prompts and delays tokens. None: one batch, which is
    always allowed. `Mode.MIXED`: what one step takes along; the rest of `prefill` goes along with the next steps.
    None: as much as the engine can take. `Mode.SPLIT`: no meaning."""
    hold: frozenset[SequenceId] = frozenset()
    """Running sequences that take part in no decode step until the next plan. They keep their pages."""
    preempt: tuple[SequenceId, ...] = ()
    """Running sequences that give up their pages, in this order. Each goes back to the waiting sequences, and its
    prompt and output are computed again when they are planned. Their pages are free only in a later snapshot, so
    `prefill` can't count on them."""
