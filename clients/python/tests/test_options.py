from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from fake_server import FakeServer
from google.protobuf.message import Message as ProtoMessage

from semipd_client import Client, InvalidArgument, Message
from semipd_client._proto.semipd.v1 import generation_pb2 as pb
from semipd_client.options import Options


@pytest.fixture
def sent(server: FakeServer, client: Client) -> Callable[..., pb.Generation]:
    def send(prompt: Any = "p", **options: Any) -> pb.Generation:
        client.generate(prompt, **options)
        generation: pb.Generation = server.seen[-1].generation
        return generation

    return send


def test_what_is_not_given_is_not_set(sent: Callable[..., pb.Generation]) -> None:
    generation = sent()
    assert generation == pb.Generation(text="p")
    assert sent(temperature=None, stop=None) == generation


def test_zero_and_false_are_values(sent: Callable[..., pb.Generation]) -> None:
    generation = sent(temperature=0, top_k=0, seed=0, ignore_eos=False, priority=0, text=False)
    assert generation.sampling.HasField("temperature")
    assert generation.sampling.HasField("top_k")
    assert generation.sampling.HasField("seed")
    assert generation.stopping.HasField("ignore_eos")
    assert generation.scheduling.HasField("priority")
    assert generation.response.HasField("text")
    assert not generation.sampling.HasField("top_p")


def test_every_field_of_the_api_is_an_option_and_the_other_way_round() -> None:
    parts: list[type[ProtoMessage]] = [pb.SamplingParams, pb.StoppingParams, pb.ResponseParams, pb.SchedulingParams]
    api = {field.name for part in parts for field in part.DESCRIPTOR.fields}
    assert set(Options.__annotations__) == api | {"request_id", "model"}


def test_every_option_arrives_in_its_field(sent: Callable[..., pb.Generation]) -> None:
    given = {
        "request_id": "r-1",
        "model": "tiny",
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 5,
        "min_p": 0.1,
        "frequency_penalty": 0.2,
        "presence_penalty": 0.3,
        "repetition_penalty": 1.1,
        "seed": 2**64 - 1,
        "n": 2,
        "logit_bias": {7: -100.0},
        "max_tokens": 9,
        "min_tokens": 1,
        "stop": ["a", "b"],
        "stop_token_ids": [1, 2],
        "ignore_eos": True,
        "include_stop": True,
        "time_limit": 2.5,
        "text": True,
        "token_ids": False,
        "logprobs": True,
        "top_logprobs": 3,
        "timings": False,
        "priority": -5,
        "ttft_slo": 0.2,
        "tpot_slo": 0.05,
    }
    assert set(given) == set(Options.__annotations__)
    g = sent(**given)
    parts = (g, g.sampling, g.stopping, g.response, g.scheduling)
    for name, value in given.items():
        # `text` and `token_ids` are names of the input as well; as options they are the response's.
        part = g.response if name in ("text", "token_ids") else next(p for p in parts if hasattr(p, name))
        got = getattr(part, name)
        assert (dict(got) if name == "logit_bias" else list(got) if isinstance(value, list) else got) == value


def test_one_stop_string_is_not_taken_for_its_characters(sent: Callable[..., pb.Generation]) -> None:
    assert list(sent(stop="end").stopping.stop) == ["end"]


def test_token_ids_as_the_prompt(sent: Callable[..., pb.Generation]) -> None:
    assert list(sent([5, 6]).token_ids.ids) == [5, 6]


def test_no_token_ids_are_still_token_ids(sent: Callable[..., pb.Generation]) -> None:
    """The server refuses them, not the client."""
    assert sent([]).WhichOneof("input") == "token_ids"


def test_a_chat_as_the_prompt(sent: Callable[..., pb.Generation]) -> None:
    generation = sent([Message("system", "s"), {"role": "user", "content": "u"}])
    assert [(m.role, m.content) for m in generation.chat.messages] == [("system", "s"), ("user", "u")]


@pytest.mark.parametrize("prompt", [b"bytes", 5, [1, "a"], [{"role": "user"}], [object()]])
def test_what_is_no_prompt_is_a_type_error(client: Client, prompt: Any) -> None:
    with pytest.raises(TypeError):
        client.generate(prompt)


def test_an_unknown_option_is_a_type_error_that_names_it(client: Client) -> None:
    with pytest.raises(TypeError, match=r"max_token$"):
        client.generate("p", max_token=5)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("option", "value", "field"),
    [("max_tokens", -1, "stopping.max_tokens"), ("seed", 2**64, "sampling.seed"), ("stop", "\ud800", "stopping.stop")],
)
def test_what_cannot_be_sent_is_refused_by_its_field(client: Client, option: str, value: Any, field: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        client.generate("p", **{option: value})
    assert [v.field for v in caught.value.violations] == [field]
    assert caught.value.reason == "INVALID_ARGUMENT"


def test_a_prompt_that_is_not_unicode_is_refused_and_not_quoted(client: Client) -> None:
    with pytest.raises(InvalidArgument) as caught:
        client.generate("secret \ud800")
    assert "secret" not in str(caught.value)
    assert caught.value.__cause__ is None
