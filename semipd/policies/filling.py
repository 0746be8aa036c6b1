"""Fills one prefill batch from an order: the part that most policies share."""

from __future__ import annotations

from semipd.core.plan import Chunk, Order
from semipd.core.snapshot import Snapshot


def fill_batch(snapshot: Snapshot, order: Order, batch_tokens: int) -> tuple[Chunk, ...]:
    """Takes sequences in order until `batch_tokens` prompt tokens are planned or the pool has no page to spare.

    The last one in may get only a chunk of its prompt (chunked prefill). A page for each running sequence is left
    free, so that admitting a prompt does not at once cause a preemption; but when nothing runs, a prompt may have all.
    Sequences are not overtaken for want of pages: a later, smaller one would starve the one at the front.
    """
    pages = snapshot.pages
    waiting = {w.sequence: w for w in snapshot.waiting}
    spare = pages.free - len(snapshot.running)
    room = min(batch_tokens, snapshot.limits.max_batch_tokens)
    chunks: list[Chunk] = []
    for number in order.sequences:
        sequence = waiting[number]
        if sequence.in_flight_tokens:
            continue
        held = pages.pages_for(sequence.computed_tokens)
        tokens = min(
            sequence.remaining_tokens, room, (held + max(spare, 0)) * pages.page_size - sequence.computed_tokens
        )
        if tokens <= 0:
            break
        chunks.append(Chunk(number, tokens))
        spare -= pages.pages_for(sequence.computed_tokens + tokens) - held
        room -= tokens
        if room == 0 or tokens < sequence.remaining_tokens:
            break
    return tuple(chunks)
