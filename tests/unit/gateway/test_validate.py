"""Bad fields are refused by the names that the API gives them, all at once, and before any work."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest

from semipd.core.errors import InvalidRequest, NotFound, PromptTooLong, Unsupported
from semipd.gateway.served_model import ServedModel
from semipd.gateway.validate import CheckpointFeatures, check
from semipd.v1 import generation_pb2 as pb
from support.gateway_bench import GatewayBench, failure_of

MODEL = ServedModel("tiny", Path("tiny"), "LlamaForCausalLM", "float32", 1000, 320, 128, (1,))
ALL = CheckpointFeatures(text=True, chat=True)


def generation(**fields: Any) -> pb.Generation:
    return pb.Generation(**({"text": "hello"} | fields))


def sampling(**fields: Any) -> pb.Generation:
    return generation(sampling=pb.SamplingParams(**fields))


def stopping(**fields: Any) -> pb.Generation:
    return generation(stopping=pb.StoppingParams(**fields))


def response(**fields: Any) -> pb.Generation:
    return generation(response=pb.ResponseParams(**fields))


def scheduling(**fields: Any) -> pb.Generation:
    return generation(scheduling=pb.SchedulingParams(**fields))


def ids(*tokens: int) -> pb.Generation:
    return pb.Generation(token_ids=pb.TokenIds(ids=tokens))


def chat(*messages: tuple[str, str]) -> pb.Generation:
    return pb.Generation(chat=pb.Chat(messages=[pb.ChatMessage(role=r, content=c) for r, c in messages]))


BAD = [
    (pb.Generation(), "input"),
    (generation(text=""), "text"),
    (ids(), "token_ids.ids"),
    (ids(1, 320), "token_ids.ids"),
    (chat(), "chat.messages"),
    (chat(*[("user", "x")] * 4097), "chat.messages"),
    (chat(("", "hello")), "chat.messages[0].role"),
    (generation(request_id=""), "request_id"),
    (generation(request_id="a b"), "request_id"),
    (generation(request_id="x" * 129), "request_id"),
    (generation(request_id="line\n"), "request_id"),
    (sampling(temperature=math.nan), "sampling.temperature"),
    (sampling(temperature=math.inf), "sampling.temperature"),
    (sampling(temperature=-0.1), "sampling.temperature"),
    (sampling(temperature=2.1), "sampling.temperature"),
    (sampling(top_p=0), "sampling.top_p"),
    (sampling(top_p=1.01), "sampling.top_p"),
    (sampling(top_k=2**31), "sampling.top_k"),
    (sampling(min_p=-0.1), "sampling.min_p"),
    (sampling(min_p=1.1), "sampling.min_p"),
    (sampling(frequency_penalty=2.1), "sampling.frequency_penalty"),
    (sampling(presence_penalty=-2.1), "sampling.presence_penalty"),
    (sampling(repetition_penalty=0), "sampling.repetition_penalty"),
    (sampling(repetition_penalty=10.5), "sampling.repetition_penalty"),
    (sampling(n=0), "sampling.n"),
    (sampling(n=17), "sampling.n"),
    (sampling(logit_bias={320: 1}), "sampling.logit_bias"),
    (sampling(logit_bias={3: 101}), "sampling.logit_bias"),
    (sampling(logit_bias={3: math.nan}), "sampling.logit_bias"),
    (sampling(logit_bias=dict.fromkeys(range(301), 1)), "sampling.logit_bias"),
    (stopping(max_tokens=0), "stopping.max_tokens"),
    (stopping(max_tokens=2**32 - 1), "stopping.max_tokens"),
    (stopping(max_tokens=4, min_tokens=5), "stopping.min_tokens"),
    (stopping(stop=["x"] * 17), "stopping.stop"),
    (stopping(stop=["x"] * 5000), "stopping.stop"),
    (stopping(stop=[""]), "stopping.stop"),
    (stopping(stop=["x" * 257]), "stopping.stop"),
    (stopping(stop_token_ids=range(65)), "stopping.stop_token_ids"),
    (stopping(stop_token_ids=[320]), "stopping.stop_token_ids"),
    (stopping(time_limit=0), "stopping.time_limit"),
    (stopping(time_limit=math.nan), "stopping.time_limit"),
    (response(top_logprobs=3), "response.top_logprobs"),
    (response(logprobs=True, top_logprobs=21), "response.top_logprobs"),
    (scheduling(priority=101), "scheduling.priority"),
    (scheduling(ttft_slo=0), "scheduling.ttft_slo"),
    (scheduling(tpot_slo=-1), "scheduling.tpot_slo"),
]


@pytest.mark.parametrize(("bad", "field"), BAD, ids=lambda value: value if isinstance(value, str) else "")
def test_a_bad_field_is_named(bad: pb.Generation, field: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        check(bad, MODEL, ALL)
    assert [violation.field for violation in caught.value.violations] == [field]


EDGES = [
    sampling(temperature=0),
    sampling(temperature=2, top_p=1, top_k=0, min_p=1, repetition_penalty=10, n=16, seed=2**64 - 1),
    sampling(logit_bias=dict.fromkeys(range(300), -100)),
    stopping(stop=["x" * 256] * 16, stop_token_ids=list(range(64)), min_tokens=4, max_tokens=4),
    response(logprobs=True, top_logprobs=20),
    response(top_logprobs=0),
    scheduling(priority=-100),
    generation(request_id="A.z_0:9-" * 16),
    ids(0, 319),
    generation(model="tiny"),
]


@pytest.mark.parametrize("good", EDGES)
def test_what_is_just_allowed_passes(good: pb.Generation) -> None:
    check(good, MODEL, ALL)


def test_all_bad_fields_are_named_at_once() -> None:
    bad = pb.Generation(
        request_id="?",
        sampling=pb.SamplingParams(temperature=-1, n=99),
        stopping=pb.StoppingParams(max_tokens=0),
        scheduling=pb.SchedulingParams(priority=999),
    )
    with pytest.raises(InvalidRequest) as caught:
        check(bad, MODEL, ALL)
    assert {v.field for v in caught.value.violations} == {
        "request_id", "input", "sampling.temperature", "sampling.n", "stopping.max_tokens", "scheduling.priority",
    }  # fmt: skip


def test_unset_fields_take_the_documented_defaults() -> None:
    request = check(generation(), MODEL, ALL).request([5] * 100, "text", MODEL, None)
    sampling = request.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.repetition_penalty) == (1.0, 1.0, 0, 1.0)
    assert (request.samples, request.priority, request.deadline_s) == (1, 0, None)
    assert request.stopping.max_tokens == 28
    assert request.stopping.stop_token_ids == {1}


def test_seeds_differ_where_none_is_asked_for() -> None:
    assert len({check(generation(), MODEL, ALL).sampling.seed for _ in range(8)}) == 8


def test_ignore_eos_leaves_the_requests_own_stop_tokens() -> None:
    checked = check(stopping(ignore_eos=True, stop_token_ids=[7]), MODEL, ALL)
    assert checked.stop_token_ids == {7}


def test_a_prompt_that_fills_the_context_is_too_long() -> None:
    checked = check(generation(), MODEL, ALL)
    assert checked.request([5] * 127, "text", MODEL, None).stopping.max_tokens == 1
    with pytest.raises(PromptTooLong) as caught:
        checked.request([5] * 128, "text", MODEL, None)
    assert (caught.value.prompt_tokens, caught.value.max_context) == (128, 128)


def test_max_tokens_beyond_the_context_names_both_numbers() -> None:
    with pytest.raises(InvalidRequest) as caught:
        check(stopping(max_tokens=30), MODEL, ALL).request([5] * 100, "text", MODEL, None)
    [violation] = caught.value.violations
    assert violation.field == "stopping.max_tokens"
    assert "100" in violation.description
    assert "30" in violation.description


def test_min_tokens_beyond_what_is_left_is_refused() -> None:
    with pytest.raises(InvalidRequest) as caught:
        check(stopping(min_tokens=29), MODEL, ALL).request([5] * 100, "text", MODEL, None)
    assert caught.value.violations[0].field == "stopping.min_tokens"


def test_tokens_that_the_model_has_no_row_for_are_refused() -> None:
    with pytest.raises(InvalidRequest) as caught:
        check(generation(), MODEL, ALL).request([5, 320], "text", MODEL, None)
    assert caught.value.violations[0].field == "text"


def test_an_unknown_model_is_not_found() -> None:
    with pytest.raises(NotFound):
        check(generation(model="other"), MODEL, ALL)


@pytest.mark.parametrize(
    ("asked", "features"),
    [
        (generation(), CheckpointFeatures(text=False, chat=False)),
        (chat(("user", "x")), CheckpointFeatures(text=True, chat=False)),
        (
            pb.Generation(token_ids=pb.TokenIds(ids=[1]), stopping=pb.StoppingParams(stop=["x"])),
            CheckpointFeatures(False, False),
        ),
        (
            pb.Generation(token_ids=pb.TokenIds(ids=[1]), response=pb.ResponseParams(text=True)),
            CheckpointFeatures(False, False),
        ),
    ],
)
def test_what_the_checkpoint_lacks_is_unsupported(asked: pb.Generation, features: CheckpointFeatures) -> None:
    with pytest.raises(Unsupported):
        check(asked, MODEL, features)


def test_without_a_tokenizer_token_ids_go_in_and_out() -> None:
    checked = check(ids(1, 2), MODEL, CheckpointFeatures(text=False, chat=False))
    assert not checked.text
    assert checked.token_ids


def test_a_field_from_the_future_is_refused_not_ignored() -> None:
    future = pb.Generation.FromString(generation().SerializeToString() + b"\xf8\x06\x01")
    with pytest.raises(Unsupported, match="the request"):
        check(future, MODEL, ALL)
    nested = sampling(temperature=1)
    nested.sampling.MergeFromString(b"\xf8\x06\x01")
    with pytest.raises(Unsupported, match="sampling"):
        check(nested, MODEL, ALL)


async def test_a_refusal_at_the_door_is_counted_and_never_submitted(bench: GatewayBench) -> None:
    details = await failure_of(
        bench.generate(text="hello", sampling=pb.SamplingParams(temperature=-1), request_id="bad")
    )
    assert details.code is grpc.StatusCode.INVALID_ARGUMENT
    assert details.info.reason == "INVALID_ARGUMENT"
    assert details.info.metadata["request_id"] == "bad"
    assert list(details.violations) == ["sampling.temperature"]
    assert (await bench.coordinator.expect("door_refusal")).reason == "INVALID_ARGUMENT"


async def test_a_prompt_too_long_tells_both_numbers(bench: GatewayBench) -> None:
    details = await failure_of(bench.generate(token_ids=pb.TokenIds(ids=[5] * 200)))
    assert (details.code, details.info.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "PROMPT_TOO_LONG")
    assert dict(details.info.metadata) | {"request_id": ""} == {
        "prompt_tokens": "200", "max_context": "128", "request_id": "",
    }  # fmt: skip


async def test_a_prompt_never_comes_back_in_an_error(bench: GatewayBench) -> None:
    details = await failure_of(bench.generate(text="very secret " * 50))
    assert "secret" not in str(details.status)


async def test_bytes_that_are_no_message_are_a_bad_argument(bench: GatewayBench) -> None:
    call: Any = bench.channel.unary_unary("/semipd.v1.GenerationService/Generate")
    assert (await failure_of(call(b"\x0a\xff\xff"))).code is grpc.StatusCode.INVALID_ARGUMENT
    # A Generation whose text is not UTF-8.
    assert (await failure_of(call(b"\x0a\x04\x1a\x02\xff\xfe"))).info.reason == "INVALID_ARGUMENT"


def test_the_context_may_be_limited_below_the_models() -> None:
    with pytest.raises(PromptTooLong):
        check(generation(), MODEL, ALL).request([5] * 16, "text", replace(MODEL, max_context=16), None)
