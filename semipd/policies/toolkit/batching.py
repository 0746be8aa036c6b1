"""Fills one prefill batch from an order: the part that most policies share."""

from __future__ import annotations

from collections.abc import Iterable

from semipd.core.plan import Chunk
from semipd.core.snapshot import Snapshot, WaitingSequence

TINY = 8
"""Pieces below 1/8 of a batch are not cut off: each costs a batch of its own, or a place in one, for little work."""


def fill_batch(
    snapshot: Snapshot,
    order: Iterable[WaitingSequence],
    batch_tokens: int | None = None,
    *,
    exact: bool = False,
) -> tuple[Chunk, ...]:
    """Takes sequences in order until `batch_tokens` prompt tokens are planned or the pool has no page to spare.

    `order` names sequences of `snapshot.waiting`; those that can't be planned now are passed over. `batch_tokens`:
    None: as many as the engine takes.

    The last one in may get only a chunk of its prompt (chunked prefill), never a tiny one where the rest of the queue
    can wait for the next batch. A prompt that would leave a tiny remainder is completed, so a batch may have an eighth
    more than `batch_tokens`, within the engine's limit; with `exact` it never has more.

    A page for each running sequence is left free, so that a new prompt does not at once cause a preemption; but when
    nothing runs, a prompt may have all. Sequences are not overtaken for want of pages: a later, smaller one would
    starve the one at the front.
    """
    pages = snapshot.pages
    spare = max(0, pages.free - len(snapshot.running))
    limit = snapshot.limits.max_batch_tokens
    room = limit if batch_tokens is None else min(batch_tokens, limit)
    tiny = room // TINY
    over = 0 if exact else min(tiny, limit - room)
    chunks: list[Chunk] = []
    for sequence in order:
        remaining = sequence.remaining_tokens
        if sequence.in_flight_tokens or remaining <= 0:
            continue
        held = pages.pages_for(sequence.computed_tokens)
        fits = (held + spare) * pages.page_size - sequence.computed_tokens
        tokens = remaining if remaining <= room + over else room
        if chunks and tokens < min(tiny, remaining):
            break
        tokens = min(tokens, fits)
        if tokens <= 0:
            break
        chunks.append(Chunk(sequence.sequence, tokens))
        spare -= pages.pages_for(sequence.computed_tokens + tokens) - held
        room -= tokens
        if room <= 0 or tokens < remaining:
            break
    return tuple(chunks)
