"""OpenAI's completions protocol, against a real HTTP server."""

from __future__ import annotations

import re
from typing import Any

import pytest

from semipd.bench.errors import InputError, RunFailed, Unreachable
from semipd.bench.scoring.records import Outcome
from semipd.bench.scoring.target_info import TargetInfo
from semipd.bench.settings import RunSettings
from semipd.bench.targets.base import PromptRequest, ResponseStream
from semipd.bench.targets.openai_target import AT_THE_END, CHUNKS, EVERY_CHUNK
from semipd.bench.targets.registry import open_target
from support.openai_server import DONE, MODEL, OpenAiServer, chunk, event, last_usage

ASKED = PromptRequest((5, 6, 7), 3, 1.0, 1.0)


def settings(server: OpenAiServer, model: str = MODEL) -> RunSettings:
    return RunSettings(server.target, "chat", 1.0, 1.0, model=model)


async def answered(server: OpenAiServer) -> ResponseStream:
    stream = ResponseStream()
    async with server.running(), open_target(settings(server)) as target:
        await target.connect()
        await target.send(target.prepare(ASKED), stream)
    return stream


async def described(server: OpenAiServer, model: str = MODEL) -> TargetInfo:
    async with server.running(), open_target(settings(server, model)) as target:
        return await target.describe()


async def test_a_request_is_a_prompt_of_token_ids_with_its_length_forced() -> None:
    server = OpenAiServer()
    await answered(server)
    (body,) = server.bodies
    assert body["model"] == MODEL
    assert body["prompt"] == [5, 6, 7]
    assert body["max_tokens"] == body["min_tokens"] == 3
    assert body["ignore_eos"] is True
    assert body["stream"] is True
    assert body["stream_options"] == {"include_usage": True, "continuous_usage_stats": True}


async def test_the_key_of_the_environment_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sesame")
    server = OpenAiServer()
    await answered(server)
    assert server.authorizations == ["Bearer sesame"]


async def test_tokens_are_counted_by_the_usage_in_each_chunk() -> None:
    """Also where a chunk brings several, or none."""
    server = OpenAiServer(lambda _: [chunk("", 0), chunk("ab", 2), chunk("", 2), chunk("c", 3), last_usage(3), DONE])
    stream = await answered(server)
    assert stream.counts == [2, 1]
    assert len(stream.times) == 2
    assert stream.outcome(3) == (Outcome.DONE, "")


async def test_without_usage_a_chunk_is_a_token() -> None:
    stream = await answered(OpenAiServer(lambda _: [chunk(), chunk(), chunk(), DONE]))
    assert stream.counts == [1, 1, 1]
    assert stream.outcome(3) == (Outcome.DONE, "")


async def test_usage_at_the_end_gives_the_total() -> None:
    stream = await answered(OpenAiServer(lambda _: [chunk(), chunk("two"), last_usage(3), DONE]))
    assert stream.counts == [1, 1]
    assert stream.tokens() == 3
    assert stream.outcome(3) == (Outcome.DONE, "")


async def test_events_may_be_torn_and_glued_on_the_wire() -> None:
    wire = b": hello\r\n\r\n" + b"".join(event(chunk("\u00e4", i)) for i in (1, 2, 3)).replace(b"\n", b"\r\n") + DONE
    pieces: list[bytes | dict[str, Any]] = [wire[i : i + 7] for i in range(0, len(wire), 7)]
    assert (await answered(OpenAiServer(lambda _: pieces))).outcome(3) == (Outcome.DONE, "")


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ([chunk(), chunk(), DONE], "not as many tokens"),
        ([chunk(), chunk(), chunk()], r"without \[DONE\]"),
        ([chunk(), {"error": {"message": "out of memory"}}, DONE], "error in the stream: out of memory"),
        ([b"data: {nonsense\n\n"], "not JSON"),
    ],
)
async def test_an_answer_that_is_not_whole_has_failed(script: list[bytes | dict[str, Any]], said: str) -> None:
    outcome, reason = (await answered(OpenAiServer(lambda _: script))).outcome(3)
    assert outcome is Outcome.FAILED
    assert re.search(said, reason)


@pytest.mark.parametrize(
    ("status", "outcome"),
    [(429, Outcome.REFUSED), (503, Outcome.REFUSED), (500, Outcome.FAILED), (400, Outcome.FAILED)],
)
async def test_an_error_status(status: int, outcome: Outcome) -> None:
    stream = await answered(OpenAiServer(status=status))
    assert stream.outcome(3) == (outcome, f"HTTP {status}: no room")


@pytest.mark.parametrize(
    ("script", "counting"),
    [
        ([chunk("x", 1), chunk("x", 2), last_usage(2), DONE], EVERY_CHUNK),
        ([chunk(), chunk(), last_usage(2), DONE], AT_THE_END),
        ([chunk(), chunk(), DONE], CHUNKS),
    ],
)
async def test_the_target_is_asked_how_it_counts(script: list[bytes | dict[str, Any]], counting: str) -> None:
    info = await described(OpenAiServer(lambda _: script))
    assert info.counting == counting
    assert (info.model, info.vocab_size, info.max_context) == (MODEL, 32_000, 4096)


async def test_an_unknown_model_is_told_with_those_that_are_there() -> None:
    with pytest.raises(InputError, match="no model other, but tiny"):
        await described(OpenAiServer(), "other")


async def test_a_target_that_answers_with_errors_is_no_target() -> None:
    with pytest.raises(RunFailed, match="failed: HTTP 500: no room"):
        await described(OpenAiServer(status=500))


async def test_nobody_there() -> None:
    async with open_target(RunSettings("openai+http://127.0.0.1:1/v1", "chat", 1.0, 1.0, model=MODEL)) as target:
        with pytest.raises(Unreachable, match="nobody answers"):
            await target.describe()
