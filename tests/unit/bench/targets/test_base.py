"""Targets are found by their names, and are sent prompts of the lengths that were asked for."""

from __future__ import annotations

import pytest

from semipd.bench.errors import InputError
from semipd.bench.scoring.records import Outcome
from semipd.bench.settings import RunSettings
from semipd.bench.targets.base import ResponseStream, draw_prompt, parse_target
from semipd.bench.targets.registry import open_target


@pytest.mark.parametrize(
    ("text", "protocol", "hostport", "url"),
    [
        ("grpc://host:50051", "grpc", "host:50051", ""),
        ("grpc://[::1]:50051/", "grpc", "[::1]:50051", ""),
        ("openai+http://host:8000/v1", "openai", "host:8000", "http://host:8000/v1"),
        ("openai+http://host/v1/", "openai", "host:80", "http://host:80/v1"),
        ("openai+https://host/api/v1", "openai", "host:443", "https://host:443/api/v1"),
    ],
)
def test_targets(text: str, protocol: str, hostport: str, url: str) -> None:
    address = parse_target(text)
    assert (address.protocol, address.hostport, address.url) == (protocol, hostport, url)


@pytest.mark.parametrize(
    "text",
    ["host:50051", "grpc://host", "grpc://:1", "grpc://host:99999", "grpc://host:1/v1", "http://host:1/v1", "",
     "openai+http:///v1", "openai+http://u:p@host/v1", "openai+http://host/v1?x=1", "grpc://[::1:1"],
)  # fmt: skip
def test_what_is_no_target_is_refused(text: str) -> None:
    with pytest.raises(InputError):
        parse_target(text)


async def test_an_openai_target_needs_a_model() -> None:
    with pytest.raises(InputError, match="needs --model"):
        open_target(RunSettings("openai+http://host:1/v1", "chat", 1.0, 1.0))


def test_prompts_are_random_below_the_vocabulary_and_the_same_for_a_seed_and_index() -> None:
    prompt = draw_prompt(1, 2, 5000, 100)
    assert len(prompt) == 5000
    assert set(prompt) == set(range(100))
    assert prompt == draw_prompt(1, 2, 5000, 100)
    assert prompt != draw_prompt(1, 3, 5000, 100)
    assert prompt != draw_prompt(2, 2, 5000, 100)
    assert draw_prompt(0, 0, 4, 32000) == (5410, 17887, 11498, 31684)


def streamed(*counts: int) -> ResponseStream:
    stream = ResponseStream()
    stream.counts.extend(counts)
    stream.times.extend(float(n) for n, _ in enumerate(counts))
    return stream


def test_an_answer_of_another_length_is_a_failure() -> None:
    assert streamed(1, 2).outcome(3) == (Outcome.DONE, "")
    assert streamed(1, 1).outcome(3)[0] is Outcome.FAILED
    assert streamed(1, 3).outcome(3)[0] is Outcome.FAILED


def test_the_total_that_a_target_tells_goes_before_what_was_counted() -> None:
    stream = streamed(1, 1)
    stream.total = 3
    assert stream.outcome(3) == (Outcome.DONE, "")
    stream.total = 1
    assert stream.outcome(2)[0] is Outcome.FAILED
