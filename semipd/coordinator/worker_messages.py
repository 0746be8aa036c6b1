"""Puts sequences into the messages that workers get."""

from __future__ import annotations

from semipd.coordinator.requests import SequenceState
from semipd.internal.v1 import worker_pb2 as wk
from semipd.wire.codec import sampling_to_wire, stopping_to_wire


def chunk_to_wire(sequence: SequenceState, tokens: int) -> wk.Chunk:
    """Returns the next `tokens` tokens of a sequence as a chunk. The chunk that ends the prompt says how to sample."""
    last = sequence.computed + tokens == sequence.to_compute
    return wk.Chunk(
        lease=sequence.lease,
        request_id=sequence.entry.request.request_id,
        start=sequence.computed,
        tokens=sequence.tokens(sequence.computed, tokens),
        continuation=continuation_to_wire(sequence) if last else None,
        prompt_tokens=len(sequence.entry.request.prompt),
    )


def adopt_to_wire(sequence: SequenceState, ordinal: int) -> wk.Adopt:
    """Returns what the decode worker needs to continue a sequence. `ordinal` counts the Adopts, from 1."""
    return wk.Adopt(
        lease=sequence.lease,
        request_id=sequence.entry.request.request_id,
        context=sequence.to_compute - 1,
        continuation=continuation_to_wire(sequence),
        priority=sequence.entry.request.priority,
        sequence=sequence.number,
        ordinal=ordinal,
    )


def continuation_to_wire(sequence: SequenceState) -> wk.Continuation:
    """Returns what is needed to sample the next token of a sequence."""
    request = sequence.entry.request
    return wk.Continuation(
        sampling=sampling_to_wire(sequence.sampling),
        stopping=stopping_to_wire(request.stopping),
        output=sequence.output,
        prompt=request.prompt if sequence.sampling.penalised else (),
    )
