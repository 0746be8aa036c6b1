from __future__ import annotations

import threading
from typing import Any

import pytest
from fake_server import PATIENCE_S, FakeServer
from google.rpc import status_pb2 as google
from grpc_health.v1 import health_pb2

from semipd_client import AbortOutcome, Client, FinishReason, Partition, Percentiles, Unavailable
from semipd_client._proto.semipd.client.v1 import status_pb2 as ours
from semipd_client._proto.semipd.v1 import admin_pb2, generation_pb2, model_pb2, tokenizer_pb2


def test_generate_gives_the_whole_answer(server: FakeServer, client: Client) -> None:
    finish = generation_pb2.Finish(reason=generation_pb2.FINISH_REASON_STOP, stop="END")
    sample = generation_pb2.Sample(text="Hi", token_ids=[4, 5], finish=finish)
    usage = generation_pb2.Usage(prompt_tokens=1, output_tokens=2)
    server.answer = lambda *_: generation_pb2.GenerateResponse(request_id="r", samples=[sample], usage=usage)
    answer = client.generate("p")
    assert (answer.request_id, answer.text, answer.token_ids, answer.timings) == ("r", "Hi", (4, 5), None)
    assert answer.finish is not None
    assert (answer.finish.reason, answer.finish.stop, answer.finish.stop_token_id) == (FinishReason.STOP, "END", None)


@pytest.mark.parametrize("outcome", list(AbortOutcome))
def test_abort_says_what_it_found(server: FakeServer, client: Client, outcome: AbortOutcome) -> None:
    wire: Any = generation_pb2.AbortOutcome.Value(f"ABORT_OUTCOME_{outcome.name}")
    server.answer = lambda *_: generation_pb2.AbortResponse(outcome=wire)
    assert client.abort("r1") is outcome
    assert server.seen[-1].request_id == "r1"


def test_models_and_their_limits(server: FakeServer, client: Client) -> None:
    wire = model_pb2.Model(name="tiny", max_context=64, eos_token_ids=[2], limits=model_pb2.Limits(max_samples=16))
    server.answer = lambda *_: model_pb2.ListModelsResponse(models=[wire])
    (model,) = client.models()
    assert (model.name, model.max_context, model.eos_token_ids, model.limits.samples) == ("tiny", 64, (2,), 16)
    server.answer = lambda *_: model_pb2.GetModelResponse(model=wire)
    assert client.model() == model
    assert not server.seen[-1].HasField("model")
    assert client.model("tiny") == model
    assert server.seen[-1].model == "tiny"


def test_tokenize_and_back(server: FakeServer, client: Client) -> None:
    server.answer = lambda *_: tokenizer_pb2.TokenizeResponse(token_ids=[1, 2])
    assert client.tokenize("ab", add_special_tokens=False) == (1, 2)
    assert server.seen[-1] == tokenizer_pb2.TokenizeRequest(text="ab", add_special_tokens=False)
    client.tokenize([{"role": "user", "content": "ab"}])
    assert server.seen[-1].chat.messages[0].content == "ab"
    server.answer = lambda *_: tokenizer_pb2.DetokenizeResponse(text="ab")
    assert client.detokenize([1, 2]) == "ab"
    assert server.seen[-1] == tokenizer_pb2.DetokenizeRequest(token_ids=[1, 2])


def test_load_tells_nothing_seen_from_zero(server: FakeServer, client: Client) -> None:
    server.answer = lambda *_: admin_pb2.GetLoadResponse(load=admin_pb2.Load(waiting=2))
    load = client.load()
    assert (load.waiting, load.time_to_first_token, load.slo_attainment) == (2, None, None)
    seen = admin_pb2.Load(time_to_first_token=admin_pb2.Percentiles(p50=0.5), slo_attainment=0.0)
    server.answer = lambda *_: admin_pb2.GetLoadResponse(load=seen)
    load = client.load()
    assert (load.time_to_first_token, load.slo_attainment) == (Percentiles(0.5, 0.0, 0.0), 0.0)


def test_watching_the_load_ends_with_the_loop(server: FakeServer, client: Client) -> None:
    for load in client.watch_load(0.5):
        if load.waiting == 3:
            break
    assert server.seen[-1].interval == 0.5
    assert server.left.wait(PATIENCE_S)


def test_server_info_names_the_processes(server: FakeServer, client: Client) -> None:
    process = admin_pb2.Process(role="decode", pid=7, incarnation=2)
    server.answer = lambda *_: admin_pb2.GetServerInfoResponse(policy="fcfs", processes=[process])
    info = client.server_info()
    assert info.policy == "fcfs"
    assert (info.processes[0].role, info.processes[0].pid, info.processes[0].incarnation) == ("decode", 7, 2)


def test_policies_partition_and_drain(server: FakeServer, client: Client) -> None:
    server.answer = lambda *_: admin_pb2.ListPoliciesResponse(policies=[admin_pb2.Policy(name="fcfs", active=True)])
    assert [(p.name, p.active) for p in client.policies()] == [("fcfs", True)]
    server.answer = lambda *_: admin_pb2.SetPolicyResponse(previous="fcfs")
    assert client.set_policy("static", {"prefill": "40"}) == "fcfs"
    assert dict(server.seen[-1].options) == {"prefill": "40"}
    server.answer = lambda q, _: admin_pb2.SetPartitionResponse(granted=q.partition)
    assert client.set_partition(prefill=60, decode=40) == Partition(60, 40)
    server.answer = lambda *_: admin_pb2.DrainResponse(remaining=1)
    assert client.drain(0.5) == 1
    assert server.seen[-1].timeout == 0.5


def test_the_api_key_goes_with_every_call(server: FakeServer) -> None:
    with Client(server.address, api_key="k") as client:
        client.generate("p")
        list(client.stream("p"))
    assert [m["authorization"] for m in server.metadata] == ["Bearer k", "Bearer k"]


def test_wait_ready_returns_when_the_server_begins_to_serve(server: FakeServer, client: Client) -> None:
    server.health.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
    assert not client.is_serving()
    waiting = threading.Thread(target=client.wait_ready, args=(10,))
    waiting.start()
    assert server.health.watched.wait(PATIENCE_S)
    server.health.set("", health_pb2.HealthCheckResponse.SERVING)
    waiting.join(PATIENCE_S)
    assert not waiting.is_alive()
    assert client.is_serving()


def test_wait_ready_gives_up_where_the_server_does_not_serve(server: FakeServer, client: Client) -> None:
    server.health.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
    with pytest.raises(Unavailable) as caught:
        client.wait_ready(0.2)
    assert caught.value.reason == "NOT_READY"


def test_wait_ready_gives_up_where_nobody_answers() -> None:
    with Client("127.0.0.1:1") as client:
        assert not client.is_serving()
        with pytest.raises(Unavailable) as caught:
            client.wait_ready(0.2)
    assert caught.value.reason == ""


def test_the_clients_messages_live_beside_googles(server: FakeServer, client: Client) -> None:
    """This process has googleapis' and grpc-health's own messages loaded as well."""
    message = google.Status(code=5, message="m")
    assert ours.Status.FromString(message.SerializeToString()).message == "m"
