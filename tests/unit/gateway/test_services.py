"""The services beside generation, and what holds for all methods: health, reflection, credentials, errors."""

from __future__ import annotations

import asyncio
import ssl
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import grpc
import pytest
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from tokenizers import Tokenizer

from semipd.core.config import ServerConfig
from semipd.core.errors import ConfigError, StartError
from semipd.gateway.server import SERVICES, Gateway
from semipd.internal.v1 import gateway_pb2 as gw
from semipd.internal.v1 import sequence_pb2 as seq
from semipd.v1 import admin_pb2, admin_pb2_grpc, model_pb2, model_pb2_grpc, tokenizer_pb2, tokenizer_pb2_grpc
from semipd.v1 import generation_pb2 as pb
from semipd.wire.sockets import RunDir
from support.gateway_bench import PATIENCE_S, GatewayBench, OpenBench, failure_of, make_delta

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


async def test_the_model_is_described(bench: GatewayBench) -> None:
    stub = model_pb2_grpc.ModelServiceStub(bench.channel)
    [model] = (await stub.ListModels(model_pb2.ListModelsRequest())).models
    assert (model.name, model.architecture, model.vocab_size, model.max_context) == (
        "tiny",
        "LlamaForCausalLM",
        320,
        128,
    )
    assert list(model.eos_token_ids) == [1]
    assert model.capabilities == model_pb2.Capabilities(text=True, chat=True, logprobs=True)
    assert model.limits.max_samples == 16
    assert (await stub.GetModel(model_pb2.GetModelRequest())).model == model
    details = await failure_of(stub.GetModel(model_pb2.GetModelRequest(model="other")))
    assert (details.code, details.info.reason) == (grpc.StatusCode.NOT_FOUND, "MODEL_NOT_FOUND")


async def test_text_goes_to_tokens_and_back(bench: GatewayBench, tokenizer: Tokenizer) -> None:
    stub = tokenizer_pb2_grpc.TokenizerServiceStub(bench.channel)
    text = "hello wörld " * 500
    ids = (await stub.Tokenize(tokenizer_pb2.TokenizeRequest(text=text))).token_ids
    assert list(ids) == tokenizer.encode(text).ids
    bare = await stub.Tokenize(tokenizer_pb2.TokenizeRequest(text="hello", add_special_tokens=False))
    assert list(bare.token_ids) == tokenizer.encode("hello", add_special_tokens=False).ids
    assert (await stub.Detokenize(tokenizer_pb2.DetokenizeRequest(token_ids=ids))).text == text
    kept = tokenizer_pb2.DetokenizeRequest(token_ids=[0, *bare.token_ids], skip_special_tokens=False)
    assert (await stub.Detokenize(kept)).text == "<s>hello"
    chat = pb.Chat(messages=[pb.ChatMessage(role="user", content="hello")])
    ids = (await stub.Tokenize(tokenizer_pb2.TokenizeRequest(chat=chat))).token_ids
    assert tokenizer.decode(list(ids)) == "[user] hello\n[assistant]"
    assert "input" in (await failure_of(stub.Tokenize(tokenizer_pb2.TokenizeRequest()))).violations
    outside = tokenizer_pb2.DetokenizeRequest(token_ids=[320])
    assert "token_ids" in (await failure_of(stub.Detokenize(outside))).violations


ASKED = [
    ("GetServerInfo", admin_pb2.GetServerInfoRequest(), "server_info", admin_pb2.GetServerInfoResponse(version="9")),
    ("GetLoad", admin_pb2.GetLoadRequest(), "load", admin_pb2.GetLoadResponse(load=admin_pb2.Load(waiting=3))),
    ("Drain", admin_pb2.DrainRequest(timeout=2), "drain", admin_pb2.DrainResponse(remaining=4)),
    ("ListPolicies", admin_pb2.ListPoliciesRequest(), "policies", admin_pb2.ListPoliciesResponse()),
    (
        "SetPolicy",
        admin_pb2.SetPolicyRequest(name="static", options={"prefill": "40"}),
        "set_policy",
        admin_pb2.SetPolicyResponse(previous="fcfs"),
    ),
    (
        "SetPartition",
        admin_pb2.SetPartitionRequest(partition=admin_pb2.Partition(prefill=40, decode=60)),
        "set_partition",
        admin_pb2.SetPartitionResponse(granted=admin_pb2.Partition(prefill=50, decode=50)),
    ),
]


@pytest.mark.parametrize(
    ("method", "request_", "question", "answer"), ASKED, ids=lambda v: v if isinstance(v, str) else ""
)
async def test_an_admins_question_goes_to_the_coordinator_and_its_answer_back(
    bench: GatewayBench, method: str, request_: Message, question: str, answer: Any
) -> None:
    call = getattr(admin_pb2_grpc.AdminServiceStub(bench.channel), method)(request_, timeout=PATIENCE_S)
    ask = await bench.coordinator.expect("ask")
    assert getattr(ask, question) == request_
    await bench.coordinator.say(answer=gw.Answer(ask_id=ask.ask_id, **{question: answer}))
    assert await call == answer


async def test_a_question_may_be_answered_with_a_failure(bench: GatewayBench) -> None:
    stub = admin_pb2_grpc.AdminServiceStub(bench.channel)
    call = stub.SetPolicy(admin_pb2.SetPolicyRequest(name="nope"))
    ask = await bench.coordinator.expect("ask")
    failure = gw.Failure(reason="POLICY_NOT_FOUND", message="no policy is named 'nope'")
    await bench.coordinator.say(answer=gw.Answer(ask_id=ask.ask_id, failure=failure))
    details = await failure_of(call)
    assert (details.code, details.info.reason) == (grpc.StatusCode.NOT_FOUND, "POLICY_NOT_FOUND")


@pytest.mark.parametrize(
    ("method", "request_", "field"),
    [
        ("SetPolicy", admin_pb2.SetPolicyRequest(), "name"),
        ("SetPartition", admin_pb2.SetPartitionRequest(), "partition"),
        (
            "SetPartition",
            admin_pb2.SetPartitionRequest(partition=admin_pb2.Partition(prefill=float("nan"), decode=50)),
            "partition.prefill",
        ),
        ("Drain", admin_pb2.DrainRequest(timeout=-1), "timeout"),
    ],
)
async def test_an_admins_mistake_is_named(bench: GatewayBench, method: str, request_: Message, field: str) -> None:
    stub = admin_pb2_grpc.AdminServiceStub(bench.channel)
    assert field in (await failure_of(getattr(stub, method)(request_))).violations


async def test_load_is_watched_until_the_caller_leaves(bench: GatewayBench) -> None:
    stub = admin_pb2_grpc.AdminServiceStub(bench.channel)
    call = stub.WatchLoad(admin_pb2.WatchLoadRequest(interval=0.05))
    for n in range(3):
        ask = await bench.coordinator.expect("ask")
        load = admin_pb2.GetLoadResponse(load=admin_pb2.Load(waiting=n))
        await bench.coordinator.say(answer=gw.Answer(ask_id=ask.ask_id, load=load))
        assert (await call.read()).load.waiting == n
    call.cancel()


async def test_a_watch_ends_when_the_gateway_stops(bench: GatewayBench) -> None:
    call = admin_pb2_grpc.AdminServiceStub(bench.channel).WatchLoad(admin_pb2.WatchLoadRequest(interval=60))
    ask = await bench.coordinator.expect("ask")
    load = admin_pb2.GetLoadResponse(load=admin_pb2.Load())
    await bench.coordinator.say(answer=gw.Answer(ask_id=ask.ask_id, load=load))
    await call.read()
    async with asyncio.timeout(PATIENCE_S):
        await bench.gateway.stop(grace_s=3600)
    assert (await failure_of(call.read())).info.reason == "DRAINING"


async def test_an_interval_too_short_is_refused(bench: GatewayBench) -> None:
    call = admin_pb2_grpc.AdminServiceStub(bench.channel).WatchLoad(admin_pb2.WatchLoadRequest(interval=0.001))
    assert "interval" in (await failure_of(call.read())).violations


async def test_abort_asks_the_coordinator_and_tells_what_it_found(bench: GatewayBench) -> None:
    call = bench.generation.Abort(pb.AbortRequest(request_id="r-1"))
    cancel = await bench.coordinator.expect("cancel")
    assert (cancel.request_id, cancel.cause) == ("r-1", gw.CANCEL_CAUSE_OPERATOR)
    found = pb.AbortResponse(outcome=pb.ABORT_OUTCOME_NOT_FOUND)
    await bench.coordinator.say(answer=gw.Answer(ask_id=cancel.ask_id, abort=found))
    assert await call == found
    assert "request_id" in (await failure_of(bench.generation.Abort(pb.AbortRequest()))).violations


async def test_an_unknown_method_is_unsupported(bench: GatewayBench) -> None:
    call: Any = bench.channel.unary_unary("/semipd.v1.GenerationService/Sing")
    details = await failure_of(call(b""))
    assert (details.code, details.info.reason) == (grpc.StatusCode.UNIMPLEMENTED, "FEATURE_UNSUPPORTED")


async def test_a_message_of_more_than_four_mebibytes_is_refused(bench: GatewayBench) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await bench.generate(text="x" * (4 * 2**20 + 1))
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


@pytest.mark.parametrize("service", ["", *SERVICES])
async def test_health_follows_what_the_coordinator_says(bench: GatewayBench, service: str) -> None:
    stub: Any = health_pb2_grpc.HealthStub(bench.channel)
    request = health_pb2.HealthCheckRequest(service=service)
    assert (await stub.Check(request)).status == NOT_SERVING
    watch = stub.Watch(request)
    assert (await watch.read()).status == NOT_SERVING
    await bench.coordinator.say(state=gw.ServerState(serving=True))
    assert (await watch.read()).status == SERVING
    assert (await stub.Check(request)).status == SERVING
    await bench.coordinator.say(state=gw.ServerState(serving=False, reason="no decode worker is ready"))
    assert (await watch.read()).status == NOT_SERVING
    await bench.coordinator.say(state=gw.ServerState(serving=True))
    assert (await watch.read()).status == SERVING
    await bench.coordinator.say(state=gw.ServerState(serving=True, draining=True))
    assert (await watch.read()).status == NOT_SERVING
    watch.cancel()


async def test_the_health_of_an_unknown_service_is_not_found(bench: GatewayBench) -> None:
    stub: Any = health_pb2_grpc.HealthStub(bench.channel)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Check(health_pb2.HealthCheckRequest(service="no.Such"))
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


async def test_those_who_watch_health_hear_of_a_stop_and_don_t_delay_it(bench: GatewayBench) -> None:
    stub: Any = health_pb2_grpc.HealthStub(bench.channel)
    watch = stub.Watch(health_pb2.HealthCheckRequest())
    await bench.coordinator.say(state=gw.ServerState(serving=True))
    while (await watch.read()).status != SERVING:
        pass
    async with asyncio.timeout(PATIENCE_S):
        await bench.gateway.stop(grace_s=3600)
    assert (await watch.read()).status == NOT_SERVING
    assert await watch.read() is grpc.aio.EOF


async def test_a_stop_lets_a_stream_finish(bench: GatewayBench) -> None:
    call = bench.stream(text="x")
    submit = await bench.coordinator.admit()
    assert (await call.read()).HasField("accepted")
    stopping = asyncio.ensure_future(bench.gateway.stop(grace_s=30))
    await asyncio.sleep(0)
    await bench.coordinator.deltas(make_delta(submit.ticket, 0, [40], end=seq.END_REASON_LENGTH))
    while (event := await call.read()) is not grpc.aio.EOF:
        last = event
    assert last.HasField("summary")
    await stopping


async def test_reflection_lists_the_services(bench: GatewayBench) -> None:
    stub: Any = reflection_pb2_grpc.ServerReflectionStub(cast(Any, bench.channel))
    call = stub.ServerReflectionInfo()
    await call.write(reflection_pb2.ServerReflectionRequest(list_services=""))
    listed = {service.name for service in (await call.read()).list_services_response.service}
    assert listed >= {*SERVICES, "grpc.health.v1.Health"}
    await call.done_writing()


METHODS = [
    "/semipd.v1.GenerationService/Generate",
    "/semipd.v1.GenerationService/GenerateStream",
    "/semipd.v1.GenerationService/Abort",
    "/semipd.v1.ModelService/ListModels",
    "/semipd.v1.TokenizerService/Tokenize",
    "/semipd.v1.AdminService/Drain",
    "/semipd.v1.AdminService/WatchLoad",
    "/grpc.health.v1.Health/Check",
    "/grpc.health.v1.Health/Watch",
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
    "/no.Such/Method",
]


@pytest.mark.parametrize("authorization", [None, "Bearer wrong", "Basic right-key", "Bearer", "right-key"])
async def test_without_a_known_key_every_method_is_refused(
    open_bench: OpenBench, tmp_path: Path, authorization: str | None
) -> None:
    keys = tmp_path / "keys"
    keys.write_text("# ours\nright-key\n\nother-key\n")
    metadata = (("authorization", authorization),) if authorization else ()
    async with open_bench(api_keys_file=str(keys)) as bench:
        for method in METHODS:
            call: Any = bench.channel.unary_unary(method)
            details = await failure_of(call(b"", metadata=metadata))
            assert (details.code, details.info.reason) == (grpc.StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED"), method


@pytest.mark.parametrize("authorization", ["Bearer right-key", "bearer other-key"])
async def test_with_a_known_key_all_is_as_usual(
    open_bench: OpenBench, tmp_path: Path, authorization: str | None
) -> None:
    keys = tmp_path / "keys"
    keys.write_text("# ours\nright-key\n\nother-key\n")
    async with open_bench(api_keys_file=str(keys)) as bench:
        stub: Any = health_pb2_grpc.HealthStub(bench.channel)
        answer = await stub.Check(health_pb2.HealthCheckRequest(), metadata=(("authorization", authorization),))
        assert answer.status == NOT_SERVING


@pytest.mark.parametrize("content", [None, "# nothing\n"])
async def test_a_key_file_without_keys_opens_no_door(checkpoint: Path, tmp_path: Path, content: str | None) -> None:
    keys = tmp_path / "keys"
    if content is not None:
        keys.write_text(content)
    config = ServerConfig(model=str(checkpoint), port=0, api_keys_file=str(keys))
    with pytest.raises(ConfigError, match="--api-keys-file"):
        async with Gateway(config, RunDir(tmp_path), "gateway.0"):
            pass


@pytest.fixture(scope="module")
def key_pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A key and a certificate of localhost's own."""
    folder = tmp_path_factory.mktemp("tls")
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 1 -subj /CN=localhost"
    try:
        subprocess.run([*command.split(), "-keyout", key, "-out", certificate], capture_output=True, check=True)
    except FileNotFoundError:
        pytest.skip("openssl is not here")
    return key, certificate


async def test_tls_is_spoken_where_it_is_asked_for(open_bench: OpenBench, key_pair: tuple[Path, Path]) -> None:
    key, certificate = key_pair
    async with open_bench(tls_certificate=str(certificate), tls_key=str(key)) as bench:
        address = ("127.0.0.1", bench.gateway.port)
        shown = await asyncio.to_thread(ssl.get_server_certificate, address)
        assert shown == certificate.read_text()


async def test_a_port_in_use_is_told_by_its_option(bench: GatewayBench, checkpoint: Path, tmp_path: Path) -> None:
    config = replace(ServerConfig(model=str(checkpoint)), port=bench.gateway.port)
    with pytest.raises(StartError, match="--port"):
        async with Gateway(config, RunDir(tmp_path), "gateway.1"):
            pass


async def test_tracing_without_its_packages_names_the_extra(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "opentelemetry.exporter.otlp.proto.grpc.trace_exporter", None)
    config = ServerConfig(model=str(checkpoint), port=0, otlp_endpoint="http://127.0.0.1:4317")
    with pytest.raises(StartError, match=r"semipd\[otel\]"):
        async with Gateway(config, RunDir(tmp_path), "gateway.0"):
            pass
