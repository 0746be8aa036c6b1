"""What a policy answers, stage by stage; immutable."""

from __future__ import annotations

from dataclasses import dataclass

from semipd.core.partition import Mode, Shares
from semipd.core.snapshot import SequenceId, Snapshot, WaitingSequence


@dataclass(frozen=True, slots=True)
class AdmitInput:
    """A request at the door. `sequence` is not yet in `snapshot.waiting`."""

    snapshot: Snapshot
    sequence: WaitingSequence


@dataclass(frozen=True, slots=True)
class Admission:
    """Accept, or refuse with DEADLINE_UNMEETABLE and, where known, the seconds after which a retry may succeed."""

    accept: bool = True
    why: str = ""
    retry_after_s: float | None = None


@dataclass(frozen=True, slots=True)
class OrderInput:
    snapshot: Snapshot


@dataclass(frozen=True, slots=True)
class Order:
    """The waiting sequences, the one to run first at the front. What is left out stays in the queue."""

    sequences: tuple[SequenceId, ...]


@dataclass(frozen=True, slots=True)
class PlaceInput:
    snapshot: Snapshot
    order: Order


@dataclass(frozen=True, slots=True)
class Chunk:
    """The next `tokens` tokens of a waiting sequence's prompt."""

    sequence: SequenceId
    tokens: int


@dataclass(frozen=True, slots=True)
class Plan:
    """What to run now.

    `prefill` is one batch for the prefill worker, which runs it in one forward pass; empty: nothing now.
    The pages that its chunks need must be free, and its tokens within `limits.max_batch_tokens`.
    """

    prefill: tuple[Chunk, ...] = ()
    decode_limit: int | None = None
    """Sequences at once in the decode batch; None: the engine's limit."""
    shares: Shares | None = None
    """None: as they are."""
    mode: Mode = Mode.SPLIT
    step_tokens: int | None = None
    """Prompt tokens to one decode step, at most. Where they take turns: what prefill may compute between two steps, in
    as many batches as are there (None: one batch, which it always may); the more, the less prompts wait and the more
    tokens do. In mixed batches: what one step takes along (None: as much as the engine can); more than that in
    `prefill` goes along with several steps, one after another."""
