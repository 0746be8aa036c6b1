"""Every field of a request does what the API says, through the whole system. Greedy and seeded, hence repeatable."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from semipd_client import (
    Aborted,
    AlreadyExists,
    Client,
    DeadlineExceeded,
    Finish,
    FinishReason,
    InvalidArgument,
    Message,
    NotFound,
    Sample,
)
from support.server import PATIENCE_S, RunningServer, until

PROMPT = "The lighthouse"


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    with RunningServer("--no-spare-worker") as running:
        yield running


@pytest.fixture(scope="module")
def client(server: RunningServer) -> Iterator[Client]:
    with server.client() as made:
        yield made


@pytest.fixture(scope="module")
def plain(client: Client) -> Sample:
    return ask(client)


def finish_of(sample: Sample) -> Finish:
    assert sample.finish is not None
    return sample.finish


def ask(client: Client, **options: Any) -> Sample:
    given: dict[str, Any] = {"max_tokens": 24, "temperature": 0.0, "ignore_eos": True, **options}
    return client.generate(PROMPT, **given).samples[0]


def test_a_stop_string_ends_the_answer_before_it_and_is_named(client: Client, plain: Sample) -> None:
    stop = plain.text[9:16]
    sample = ask(client, stop=["never in it", stop])
    assert sample.text == plain.text[: plain.text.index(stop)]
    assert (finish_of(sample).reason, finish_of(sample).stop) == (FinishReason.STOP, stop)
    assert ask(client, stop=[stop], include_stop=True).text == plain.text[: plain.text.index(stop) + len(stop)]


def test_a_stop_token_ends_the_answer_and_is_named(client: Client, plain: Sample) -> None:
    token = plain.token_ids[6]
    place = list(plain.token_ids).index(token)
    sample = ask(client, stop_token_ids=[token])
    assert list(sample.token_ids) == list(plain.token_ids[:place])
    assert (finish_of(sample).reason, finish_of(sample).stop_token_id) == (FinishReason.STOP, token)
    assert list(ask(client, stop_token_ids=[token], include_stop=True).token_ids) == list(plain.token_ids[: place + 1])


def test_min_tokens_holds_a_stop_token_back(client: Client, plain: Sample) -> None:
    token = plain.token_ids[2]
    sample = ask(client, stop_token_ids=[token], min_tokens=12)
    assert len(sample.token_ids) >= 11
    assert token not in sample.token_ids[:11]


def test_max_tokens_ends_by_length(client: Client) -> None:
    sample = ask(client, max_tokens=5)
    assert (len(sample.token_ids), finish_of(sample).reason) == (5, FinishReason.LENGTH)


def test_without_max_tokens_the_context_is_the_limit(client: Client) -> None:
    answer = client.generate(PROMPT, temperature=0.0, ignore_eos=True, token_ids=False)
    assert answer.usage.prompt_tokens + answer.usage.output_tokens == client.model().max_context


def test_a_time_limit_ends_the_answer_as_it_is(client: Client) -> None:
    limits = iter((0.3, 1.0, 3.0))  # where the machine is busy the first token may take longer than the first of these

    def begun_in_time() -> Sample | None:
        found = ask(client, max_tokens=900, time_limit=next(limits))
        return found if found.token_ids else None

    sample = until(begun_in_time)
    assert finish_of(sample).reason is FinishReason.TIME_LIMIT
    assert 0 < len(sample.token_ids) < 900


def test_a_deadline_ends_it_with_an_error(client: Client) -> None:
    with pytest.raises(DeadlineExceeded):
        client.generate(PROMPT, max_tokens=900, ignore_eos=True, timeout=0.3)


def test_logit_bias_and_penalties_change_the_draw(client: Client, plain: Sample) -> None:
    assert set(ask(client, logit_bias={65: 100.0}).token_ids) == {65}
    banned = plain.token_ids[0]
    assert banned not in ask(client, logit_bias={banned: -100.0}).token_ids
    repeated = ask(client, logit_bias={65: 8.0, 66: 7.0}, max_tokens=60)
    varied = ask(client, logit_bias={65: 8.0, 66: 7.0}, max_tokens=60, frequency_penalty=2.0, presence_penalty=2.0)
    assert len(set(varied.token_ids)) > len(set(repeated.token_ids))
    assert ask(client, repetition_penalty=5.0).token_ids != plain.token_ids


@pytest.mark.parametrize("narrow", [{"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0}], ids=str)
def test_the_narrowest_filter_is_greedy(client: Client, plain: Sample, narrow: dict[str, Any]) -> None:
    assert ask(client, temperature=1.5, seed=3, **narrow).token_ids == plain.token_ids


def test_logprobs_are_of_the_tokens_and_their_alternatives(client: Client, plain: Sample) -> None:
    sample = ask(client, logprobs=True, top_logprobs=3)
    assert [p.token_id for p in sample.logprobs] == list(plain.token_ids)
    for logprob in sample.logprobs:
        assert logprob.top[0] == (logprob.token_id, logprob.logprob), "greedy takes the likeliest"
        assert len(logprob.top) == 3
        assert sum(math.exp(value) for _token, value in logprob.top) <= 1 + 1e-6


def test_samples_differ_by_their_seeds_and_the_first_is_the_request_alone(client: Client) -> None:
    given: dict[str, Any] = {"temperature": 1.2, "seed": 11, "max_tokens": 16, "ignore_eos": True}
    three = client.generate(PROMPT, n=3, **given).samples
    alone = client.generate(PROMPT, **given).samples[0]
    assert [s.index for s in three] == [0, 1, 2]
    assert three[0].token_ids == alone.token_ids
    assert len({s.token_ids for s in three}) == 3


def test_text_or_token_ids_can_be_left_out(client: Client, plain: Sample) -> None:
    assert ask(client, text=False).text == ""
    assert ask(client, token_ids=False).token_ids == ()
    assert ask(client, token_ids=False).text == plain.text
    assert client.generate(PROMPT, max_tokens=2, timings=False).timings is None


def test_a_chat_goes_through_the_models_template(client: Client) -> None:
    asked = [Message("user", "hello")]
    ids = client.tokenize(asked)
    assert client.detokenize(ids, skip_special_tokens=False).endswith("<|assistant|>")
    through_chat = client.generate(asked, max_tokens=12, temperature=0.0)
    through_ids = client.generate(ids, max_tokens=12, temperature=0.0)
    assert through_chat.samples[0].text == through_ids.samples[0].text


def test_a_live_duplicate_is_refused_and_can_be_aborted_by_its_id(client: Client) -> None:
    caught: list[Exception] = []

    def long() -> None:
        try:
            with client.stream(PROMPT, max_tokens=900, ignore_eos=True, request_id="twice") as stream:
                for _ in stream.events():
                    started.set()
        except Aborted as error:
            caught.append(error)

    started = threading.Event()
    thread = threading.Thread(target=long)
    thread.start()
    assert started.wait(PATIENCE_S)
    with pytest.raises(AlreadyExists) as refused:
        client.generate(PROMPT, request_id="twice")
    assert refused.value.reason == "DUPLICATE_REQUEST"
    assert client.abort("twice").name == "ABORTED"
    thread.join(PATIENCE_S)
    assert [e.reason for e in caught if isinstance(e, Aborted)] == ["ABORTED_BY_OPERATOR"]
    assert client.abort("twice").name == "NOT_FOUND"


@pytest.mark.parametrize(
    ("field", "options"),
    [
        ("sampling.temperature", {"temperature": math.nan}),
        ("sampling.temperature", {"temperature": 2.1}),
        ("sampling.top_p", {"top_p": 0.0}),
        ("sampling.n", {"n": 1000}),
        ("sampling.logit_bias", {"logit_bias": {10_000_000: 1.0}}),
        ("stopping.max_tokens", {"max_tokens": 0}),
        ("stopping.max_tokens", {"max_tokens": 10_000_000}),
        ("stopping.stop", {"stop": ["x"] * 5000}),
        ("response.top_logprobs", {"logprobs": True, "top_logprobs": 999}),
        ("scheduling.ttft_slo", {"ttft_slo": -1.0}),
    ],
)
def test_bad_arguments_are_refused_by_their_fields_name(client: Client, field: str, options: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument) as caught:
        ask(client, **options)
    assert [v.field for v in caught.value.violations] == [field]


def test_bad_prompts_are_refused(client: Client) -> None:
    for prompt in ("", [10_000_000], list(range(20, 40)) * 1000):
        with pytest.raises(InvalidArgument):
            client.generate(prompt, max_tokens=1)
    with pytest.raises(InvalidArgument) as caught:
        client.generate([20] * 5000, max_tokens=1)
    assert caught.value.reason == "PROMPT_TOO_LONG"
    with pytest.raises(NotFound) as unknown:
        client.generate("x", model="nobody")
    assert unknown.value.reason == "MODEL_NOT_FOUND"


def test_after_all_this_the_pool_is_as_it_was(server: RunningServer) -> None:
    assert server.free_pages_are_back()
