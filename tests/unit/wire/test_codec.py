from __future__ import annotations

import pytest

from semipd.core.errors import FieldViolation, InvalidRequest, QueueFull, Reason, RequestError
from semipd.core.request import Delta, End, EndReason, Logprob, Request, SamplingParams, Slo, StoppingParams, Timings
from semipd.internal.v1 import gateway_pb2 as gw
from semipd.wire import codec

REQUESTS = [
    Request("plain", (1, 2, 3), SamplingParams(), StoppingParams(5)),
    Request(
        request_id="everything",
        prompt=(0, 2**32 - 1),
        sampling=SamplingParams(
            temperature=0.0,
            top_p=0.5,
            top_k=7,
            min_p=0.1,
            frequency_penalty=-1.5,
            presence_penalty=1.5,
            repetition_penalty=1.1,
            seed=2**64 - 1,
            logit_bias={3: -100.0, 9: 2.5},
            logprobs=True,
            top_logprobs=4,
        ),
        stopping=StoppingParams(9, 2, frozenset({5, 6})),
        samples=3,
        priority=-7,
        slo=Slo(0.5, 0.01),
        deadline_s=3.0,
        time_limit_s=2.0,
    ),
    Request("zero is not unset", (1,), SamplingParams(), StoppingParams(1), slo=Slo(None, 0.0), deadline_s=0.0),
]


@pytest.mark.parametrize("request_", REQUESTS, ids=lambda r: r.request_id)
def test_a_request_arrives_as_it_was_sent(request_: Request) -> None:
    frame = codec.request_to_wire(7, request_).SerializeToString()
    assert codec.request_from_wire(gw.Submit.FromString(frame)) == request_


@pytest.mark.parametrize(
    "delta",
    [
        Delta(0, 0, (5,)),
        Delta(1, 3, (5, 6), (Logprob(5, -0.5, ((6, -1.0), (7, -2.0))), Logprob(6, -0.25))),
        Delta(0, 9, (), (), End(EndReason.TIME_LIMIT), Timings(0.1, 0.2, 0.3, 0.4)),
        Delta(0, 9, (2,), (), End(EndReason.STOP_TOKEN, 2), Timings(0.1, 0.2, 0.3, 0.4)),
        Delta(0, 9, (0,), (), End(EndReason.STOP_TOKEN, 0), Timings(0.1, 0.2, 0.3, 0.4)),
    ],
)
def test_a_delta_arrives_as_it_was_sent(delta: Delta) -> None:
    frame = codec.delta_to_wire(7, delta).SerializeToString()
    assert codec.delta_from_wire(gw.Delta.FromString(frame)) == delta


@pytest.mark.parametrize("reason", EndReason)
def test_every_end_has_a_place_on_the_wire(reason: EndReason) -> None:
    assert codec.end_from_wire(codec.end_to_wire(End(reason))) == End(reason)


@pytest.mark.parametrize("reason", Reason)
def test_every_reason_arrives(reason: Reason) -> None:
    error = codec.failure_from_wire(codec.failure_to_wire(RequestError("why", reason=reason)))
    assert (error.reason, error.message, error.retry_after_s) == (reason, "why", None)


def test_a_delay_and_violations_arrive() -> None:
    assert codec.failure_from_wire(codec.failure_to_wire(QueueFull("full", retry_after_s=1.5))).retry_after_s == 1.5
    sent = InvalidRequest([FieldViolation("sampling.top_p", "above 0, to 1"), FieldViolation("n", "1 to 16")])
    got = codec.failure_from_wire(codec.failure_to_wire(sent))
    assert isinstance(got, InvalidRequest)
    assert got.violations == sent.violations
