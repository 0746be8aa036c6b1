from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable

import grpc
import pytest
from fake_server import PATIENCE_S, Events, FakeServer, accepted, refuse, silent, token, until_left, whole
from typer.testing import CliRunner

from semipd.cli.main import app
from semipd_client._proto.semipd.v1 import generation_pb2

Generations = Callable[[], list[generation_pb2.Generation]]
WITHOUT_TEMPLATE = pytest.mark.parametrize("chats", [False], indirect=True)


def test_the_answer_goes_to_standard_output_and_the_rest_to_standard_error(
    runner: CliRunner, server: FakeServer
) -> None:
    result = runner.invoke(app, ["generate", "p", "--target", server.address])
    assert (result.exit_code, result.stdout) == (0, "Hi!\n")
    for part in ("TTFT", "TPOT", "3 prompt + 2 output tokens", "end: stop token 2"):
        assert part in result.stderr


def test_no_stats(runner: CliRunner, server: FakeServer) -> None:
    assert runner.invoke(app, ["generate", "p", "--target", server.address, "--no-stats"]).stderr == ""


def test_a_model_with_a_template_is_asked_through_it(
    runner: CliRunner, server: FakeServer, generations: Generations
) -> None:
    runner.invoke(app, ["generate", "p", "--target", server.address])
    (generation,) = generations()
    assert [(m.role, m.content) for m in generation.chat.messages] == [("user", "p")]


@WITHOUT_TEMPLATE
def test_a_model_without_one_goes_on_from_the_text(
    runner: CliRunner, server: FakeServer, generations: Generations
) -> None:
    runner.invoke(app, ["generate", "p", "--target", server.address])
    assert generations()[0].text == "p"


def test_raw_and_system_override_what_the_model_has(
    runner: CliRunner, server: FakeServer, generations: Generations
) -> None:
    runner.invoke(app, ["generate", "p", "--target", server.address, "--raw"])
    runner.invoke(app, ["generate", "p", "--target", server.address, "--system", "s"])
    raw, system = generations()
    assert raw.text == "p"
    assert [(m.role, m.content) for m in system.chat.messages] == [("system", "s"), ("user", "p")]


def test_options_arrive_and_what_is_not_given_is_not_set(
    runner: CliRunner, server: FakeServer, generations: Generations
) -> None:
    given = "--max-tokens 5 --temperature 0 --top-p 0.9 --top-k 3 --min-p 0.1 --repetition-penalty 1.5 --seed 0"
    runner.invoke(app, ["generate", "p", "--target", server.address, *given.split(), "--stop", "a", "--stop", "b"])
    runner.invoke(app, ["generate", "p", "--target", server.address])
    full, bare = generations()
    assert full.sampling.HasField("temperature")
    assert full.sampling.HasField("seed")
    assert (full.sampling.top_p, full.sampling.top_k, full.sampling.min_p) == (0.9, 3, 0.1)
    assert (full.sampling.repetition_penalty, full.stopping.max_tokens) == (1.5, 5)
    assert list(full.stopping.stop) == ["a", "b"]
    assert not bare.HasField("sampling")
    assert not bare.HasField("stopping")


def test_a_dash_reads_standard_input(runner: CliRunner, server: FakeServer, generations: Generations) -> None:
    runner.invoke(app, ["generate", "-", "--raw", "--target", server.address], input="from a pipe")
    assert generations()[0].text == "from a pipe"


def test_json_is_one_object_and_nothing_else(runner: CliRunner, server: FakeServer) -> None:
    result = runner.invoke(app, ["generate", "p", "--target", server.address, "--json"])
    said = json.loads(result.output)
    assert (said["text"], said["token_ids"], said["usage"]["output_tokens"]) == ("Hi!", [1, 2], 2)
    assert said["finish"] == {"reason": "stop", "stop": None, "stop_token_id": 2}
    assert said["client"]["ttft_s"] > 0
    assert said["server"]["ttft_s"] == 0.3


def test_no_server_there_is_one_sentence_that_says_how_to_start_one(runner: CliRunner) -> None:
    result = runner.invoke(app, ["generate", "p", "--port", "1"])
    assert result.exit_code == 3
    assert result.stdout == ""
    assert "127.0.0.1:1" in result.stderr
    assert "semipd serve" in result.stderr
    assert result.stderr.count("\n") == 1


def test_an_error_is_told_with_its_reason(runner: CliRunner, server: FakeServer) -> None:
    def full(_generation: generation_pb2.Generation, context: grpc.ServicerContext) -> Events:
        refuse(context, grpc.StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL", retry_after_s=2)
        yield from whole("not reached")

    server.stream = full
    result = runner.invoke(app, ["generate", "p", "--target", server.address])
    assert result.exit_code == 1
    assert "QUEUE_FULL" in result.stderr
    assert "try again in 2 s" in result.stderr


def test_an_error_after_some_text_stands_on_a_line_of_its_own(runner: CliRunner, server: FakeServer) -> None:
    def lost(_generation: generation_pb2.Generation, context: grpc.ServicerContext) -> Events:
        yield accepted()
        yield token(1, "Once")
        refuse(context, grpc.StatusCode.UNAVAILABLE, "WORKER_LOST")

    server.stream = lost
    result = runner.invoke(app, ["generate", "p", "--target", server.address])
    assert (result.exit_code, result.stdout) == (1, "Once\n")


def test_the_timeout_holds(runner: CliRunner, server: FakeServer) -> None:
    server.stream = silent
    assert runner.invoke(app, ["generate", "p", "--target", server.address, "--timeout", "0.3"]).exit_code == 1
    assert server.left.wait(PATIENCE_S)


def test_the_api_key_comes_from_the_environment(runner: CliRunner, server: FakeServer) -> None:
    runner.invoke(app, ["generate", "p", "--target", server.address], env={"SEMIPD_API_KEY": "k"})
    assert {m["authorization"] for m in server.metadata} == {"Bearer k"}


@pytest.mark.parametrize(
    "wrong",
    [["--temperature", "hot"], ["--max-tokens", "0"], ["--target", "a:1", "--port", "2"], ["--raw", "--system", "s"]],
    ids=" ".join,
)
def test_wrong_usage_exits_with_2(runner: CliRunner, wrong: list[str]) -> None:
    assert runner.invoke(app, ["generate", "p", *wrong]).exit_code == 2


def test_ctrl_c_cancels_the_request_and_exits_with_130(server: FakeServer) -> None:
    server.stream = until_left
    command = [sys.executable, "-m", "semipd.cli.main", "generate", "p", "--target", server.address]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.read(1) == b"x"
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 130
    assert b"Traceback" not in stderr
    assert server.left.wait(PATIENCE_S)
