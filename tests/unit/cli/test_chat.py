from __future__ import annotations

from collections.abc import Callable

import grpc
import pytest
from fake_server import PATIENCE_S, Events, FakeServer, accepted, refuse, silent, token, whole
from typer.testing import CliRunner, Result

from semipd.cli.conversation import Conversation
from semipd.cli.main import app
from semipd.cli.terminal import Voice
from semipd_client import Client
from semipd_client._proto.semipd.v1 import generation_pb2

Generations = Callable[[], list[generation_pb2.Generation]]


@pytest.fixture
def chat(runner: CliRunner, server: FakeServer) -> Callable[[str], Result]:
    return lambda typed: runner.invoke(app, ["chat", "--target", server.address], input=typed)


def said(generation: generation_pb2.Generation) -> list[tuple[str, str]]:
    return [(m.role, m.content) for m in generation.chat.messages]


def test_each_turn_knows_those_before_it(chat: Callable[[str], Result], generations: Generations) -> None:
    result = chat("one\ntwo\n")
    assert (result.exit_code, result.stdout) == (0, "Hi!\nHi!\n")
    assert said(generations()[1]) == [("user", "one"), ("assistant", "Hi!"), ("user", "two")]


def test_reset_forgets_and_keeps_the_system_message(chat: Callable[[str], Result], generations: Generations) -> None:
    chat("/system be brief\none\n/reset\ntwo\n")
    assert said(generations()[1]) == [("system", "be brief"), ("user", "two")]


def test_system_without_text_takes_it_away(chat: Callable[[str], Result], generations: Generations) -> None:
    chat("/system be brief\n/system\none\n")
    assert said(generations()[0]) == [("user", "one")]


def test_quit_leaves_before_the_end_of_the_input(chat: Callable[[str], Result], generations: Generations) -> None:
    assert chat("/quit\none\n").exit_code == 0
    assert generations() == []


def test_help_and_what_is_no_command(chat: Callable[[str], Result], generations: Generations) -> None:
    result = chat("/help\n/nonsense\n\n")
    assert "/reset" in result.stderr
    assert "there is no /nonsense" in result.stderr
    assert generations() == []


def test_a_turn_that_failed_was_not_said(
    chat: Callable[[str], Result], server: FakeServer, generations: Generations
) -> None:
    def once_refused(_generation: generation_pb2.Generation, context: grpc.ServicerContext) -> Events:
        if len(generations()) == 1:
            refuse(context, grpc.StatusCode.INVALID_ARGUMENT, "PROMPT_TOO_LONG")
        yield from whole("ok")

    server.stream = once_refused
    result = chat("too long\nshort\n")
    assert result.exit_code == 0
    assert "PROMPT_TOO_LONG" in result.stderr
    assert said(generations()[1]) == [("user", "short")]


@pytest.mark.parametrize("chats", [False], indirect=True)
def test_a_model_without_a_template_cannot_chat(chat: Callable[[str], Result]) -> None:
    result = chat("one\n")
    assert result.exit_code == 1
    assert "--raw" in result.stderr


def test_no_server_there(runner: CliRunner) -> None:
    assert runner.invoke(app, ["chat", "--port", "1"]).exit_code == 3


class Interrupted(Voice):
    """The person presses Ctrl-C when they have heard the first piece."""

    def say(self, text: str) -> None:
        if text:
            raise KeyboardInterrupt


def test_ctrl_c_cancels_the_answer_and_keeps_what_had_come(server: FakeServer) -> None:
    def begun(generation: generation_pb2.Generation, context: grpc.ServicerContext) -> Events:
        yield accepted()
        yield token(1, "Once")
        yield from list(silent(generation, context))[1:]

    server.stream = begun
    with Client(server.address) as client:
        conversation = Conversation(client, {})
        with pytest.raises(KeyboardInterrupt):
            conversation.say("tell me", Interrupted())
        assert server.left.wait(PATIENCE_S)
    assert [(t.role, t.content) for t in conversation.turns] == [("user", "tell me"), ("assistant", "Once")]
