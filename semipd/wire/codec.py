"""Turns values of semipd.core into messages of semipd.internal.v1 and back. Every message that the wire can carry has a
value."""

from __future__ import annotations

from collections.abc import Iterable

from semipd.core.errors import FieldViolation, InvalidRequest, Reason, RequestError
from semipd.core.request import (
    Delta,
    End,
    EndReason,
    Logprob,
    Request,
    SamplingParams,
    Slo,
    StoppingParams,
    Timings,
)
from semipd.internal.v1 import gateway_pb2 as gw
from semipd.internal.v1 import sequence_pb2 as seq
from semipd.v1 import generation_pb2 as public

_END_TO_WIRE = {
    EndReason.STOP_TOKEN: seq.END_REASON_STOP_TOKEN,
    EndReason.STOP_STRING: seq.END_REASON_STOP_STRING,
    EndReason.LENGTH: seq.END_REASON_LENGTH,
    EndReason.TIME_LIMIT: seq.END_REASON_TIME_LIMIT,
}
_END_FROM_WIRE = {wire: core for core, wire in _END_TO_WIRE.items()}


def sampling_to_wire(s: SamplingParams) -> seq.Sampling:
    return seq.Sampling(
        temperature=s.temperature,
        top_p=s.top_p,
        top_k=s.top_k,
        min_p=s.min_p,
        frequency_penalty=s.frequency_penalty,
        presence_penalty=s.presence_penalty,
        repetition_penalty=s.repetition_penalty,
        seed=s.seed,
        logit_bias=dict(s.logit_bias),
        logprobs=s.logprobs,
        top_logprobs=s.top_logprobs,
    )


def sampling_from_wire(m: seq.Sampling) -> SamplingParams:
    return SamplingParams(
        temperature=m.temperature,
        top_p=m.top_p,
        top_k=m.top_k,
        min_p=m.min_p,
        frequency_penalty=m.frequency_penalty,
        presence_penalty=m.presence_penalty,
        repetition_penalty=m.repetition_penalty,
        seed=m.seed,
        logit_bias=dict(m.logit_bias),
        logprobs=m.logprobs,
        top_logprobs=m.top_logprobs,
    )


def stopping_to_wire(s: StoppingParams) -> seq.Stopping:
    return seq.Stopping(max_tokens=s.max_tokens, min_tokens=s.min_tokens, stop_token_ids=sorted(s.stop_token_ids))


def stopping_from_wire(m: seq.Stopping) -> StoppingParams:
    return StoppingParams(m.max_tokens, m.min_tokens, frozenset(m.stop_token_ids))


def end_to_wire(end: End) -> seq.End:
    return seq.End(reason=_END_TO_WIRE[end.reason], stop_token_id=end.stop_token_id)


def end_from_wire(m: seq.End) -> End:
    token = m.stop_token_id if m.HasField("stop_token_id") else None
    return End(_END_FROM_WIRE[m.reason], token)


def logprob_to_wire(lp: Logprob) -> public.Logprob:
    top = [public.TopLogprob(token_id=token, logprob=value) for token, value in lp.top]
    return public.Logprob(token_id=lp.token, logprob=lp.logprob, top=top)


def logprob_from_wire(m: public.Logprob) -> Logprob:
    return Logprob(m.token_id, m.logprob, tuple((t.token_id, t.logprob) for t in m.top))


def request_to_wire(ticket: int, r: Request) -> gw.Submit:
    return gw.Submit(
        ticket=ticket,
        request_id=r.request_id,
        prompt=r.prompt,
        sampling=sampling_to_wire(r.sampling),
        stopping=stopping_to_wire(r.stopping),
        samples=r.samples,
        priority=r.priority,
        ttft_slo_s=r.slo.ttft_s,
        tpot_slo_s=r.slo.tpot_s,
        deadline_s=r.deadline_s,
        time_limit_s=r.time_limit_s,
    )


def request_from_wire(m: gw.Submit) -> Request:
    return Request(
        request_id=m.request_id,
        prompt=tuple(m.prompt),
        sampling=sampling_from_wire(m.sampling),
        stopping=stopping_from_wire(m.stopping),
        samples=m.samples,
        priority=m.priority,
        slo=Slo(
            m.ttft_slo_s if m.HasField("ttft_slo_s") else None,
            m.tpot_slo_s if m.HasField("tpot_slo_s") else None,
        ),
        deadline_s=m.deadline_s if m.HasField("deadline_s") else None,
        time_limit_s=m.time_limit_s if m.HasField("time_limit_s") else None,
    )


def timings_to_wire(t: Timings) -> public.Timings:
    return public.Timings(queue=t.queue_s, prefill=t.prefill_s, time_to_first_token=t.ttft_s, decode=t.decode_s)


def timings_from_wire(m: public.Timings) -> Timings:
    return Timings(m.queue, m.prefill, m.time_to_first_token, m.decode)


def delta_to_wire(ticket: int, d: Delta) -> gw.Delta:
    message = gw.Delta(ticket=ticket, index=d.index, position=d.position, tokens=d.tokens)
    # Nearly all have none of these, and a field that is given costs even where it is empty.
    if d.logprobs:
        message.logprobs.extend(map(logprob_to_wire, d.logprobs))
    if d.end is not None:
        message.end.CopyFrom(end_to_wire(d.end))
    if d.timings is not None:
        message.timings.CopyFrom(timings_to_wire(d.timings))
    return message


def delta_from_wire(m: gw.Delta) -> Delta:
    """Returns the delta; the ticket stays on the message."""
    return Delta(
        index=m.index,
        position=m.position,
        tokens=tuple(m.tokens),
        logprobs=tuple(map(logprob_from_wire, m.logprobs)),
        end=end_from_wire(m.end) if m.HasField("end") else None,
        timings=timings_from_wire(m.timings) if m.HasField("timings") else None,
    )


def failure_to_wire(error: RequestError) -> gw.Failure:
    violations: Iterable[FieldViolation] = error.violations if isinstance(error, InvalidRequest) else ()
    return gw.Failure(
        reason=error.reason.value,
        message=error.message,
        retry_after_s=error.retry_after_s,
        violations=[gw.FieldViolation(field=v.field, description=v.description) for v in violations],
    )


def failure_from_wire(m: gw.Failure) -> RequestError:
    """Returns the error. Its reason decides the status; its Python class is carried for bad arguments only."""
    if m.violations:
        return InvalidRequest([FieldViolation(v.field, v.description) for v in m.violations])
    retry = m.retry_after_s if m.HasField("retry_after_s") else None
    return RequestError(m.message, reason=Reason(m.reason), retry_after_s=retry)
