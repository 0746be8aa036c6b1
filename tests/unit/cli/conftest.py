from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from fake_server import FakeServer
from typer.testing import CliRunner

from semipd_client._proto.semipd.v1 import admin_pb2, generation_pb2, model_pb2


@pytest.fixture(params=[True])
def chats(request: pytest.FixtureRequest) -> bool:
    """Says whether the served model has a chat template; for a test to parametrize."""
    return bool(request.param)


@pytest.fixture
def server(chats: bool) -> Iterator[FakeServer]:
    with FakeServer() as running:
        model = model_pb2.Model(name="tiny", capabilities=model_pb2.Capabilities(text=True, chat=chats))
        policies = [
            admin_pb2.Policy(name="fcfs", summary="First come.", distribution="semipd"),
            admin_pb2.Policy(name="mine", summary="My own.", distribution="my-package", active=True),
        ]
        answers = {
            "GetModelRequest": model_pb2.GetModelResponse(model=model),
            "ListPoliciesRequest": admin_pb2.ListPoliciesResponse(policies=policies),
        }
        running.answer = lambda question, _: answers[type(question).__name__]
        yield running


@pytest.fixture
def generations(server: FakeServer) -> Callable[[], list[generation_pb2.Generation]]:
    """Returns a function that returns what the server was asked to generate, in order."""
    return lambda: [q.generation for q in server.seen if isinstance(q, generation_pb2.GenerateStreamRequest)]


@pytest.fixture
def runner(monkeypatch: pytest.MonkeyPatch) -> CliRunner:
    monkeypatch.delenv("SEMIPD_API_KEY", raising=False)
    return CliRunner()
