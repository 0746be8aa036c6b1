"""From the wire to what the engine samples with, and back."""

from __future__ import annotations

from semipd.engine.engine import SampledToken, SamplingInput
from semipd.internal.v1 import worker_pb2 as wk
from semipd.wire.codec import end_to_wire, logprob_to_wire, sampling_from_wire, stopping_from_wire


def sampling_input_from_wire(m: wk.Continuation) -> SamplingInput:
    return SamplingInput(
        params=sampling_from_wire(m.sampling),
        stopping=stopping_from_wire(m.stopping),
        prompt=tuple(m.prompt),
        output=tuple(m.output),
    )


def sampled_to_wire(s: SampledToken) -> wk.Sampled:
    return wk.Sampled(
        token=s.token,
        position=s.position,
        logprob=logprob_to_wire(s.logprob) if s.logprob else None,
        end=end_to_wire(s.end) if s.end else None,
    )
