from __future__ import annotations

import threading
from typing import Any

import grpc
import pytest
from fake_server import PATIENCE_S, Events, FakeServer, accepted, event, refuse, silent, token, until_left, whole

from semipd_client import (
    Accepted,
    Cancelled,
    Client,
    DeadlineExceeded,
    Finish,
    Finished,
    FinishReason,
    Internal,
    Summary,
    Timings,
    Token,
    Unavailable,
    Usage,
)
from semipd_client._proto.semipd.v1 import generation_pb2 as pb


def test_iterating_gives_the_text_and_fills_in_the_rest(client: Client) -> None:
    with client.stream("p") as stream:
        assert (stream.text, stream.finish, stream.usage, stream.timings) == ("", None, None, None)
        assert list(stream) == ["Hi", "!"]
    assert stream.text == "Hi!"
    assert stream.token_ids == (1, 2)
    assert (stream.request_id, stream.model, stream.prompt_tokens) == ("r1", "tiny", 3)
    assert stream.finish == Finish(FinishReason.STOP, stop_token_id=2)
    assert stream.usage == Usage(prompt_tokens=3, output_tokens=2)
    assert stream.timings == Timings(queue_s=0.1, prefill_s=0.2, ttft_s=0.3, decode_s=0.4)


def test_events_are_typed_and_in_order(client: Client) -> None:
    events = list(client.stream("p").events())
    assert [type(e) for e in events] == [Accepted, Token, Token, Finished, Summary]
    assert events[1] == Token(0, "Hi", (1,), ())


def test_result_is_the_whole_answer(client: Client) -> None:
    result = client.stream("p").result()
    assert (result.text, result.token_ids, result.usage.output_tokens) == ("Hi!", (1, 2), 2)


def test_samples_are_kept_apart(server: FakeServer, client: Client) -> None:
    def two(*_: object) -> Events:
        yield accepted()
        yield token(1, "a", index=1)
        yield token(2, "b", index=0)
        yield token(3, "c", index=1)
        yield event(4, summary=pb.Summary())

    server.stream = two
    stream = client.stream("p", n=2)
    assert list(stream) == ["b"]
    assert [(s.index, s.text) for s in stream.samples] == [(0, "b"), (1, "ac")]


def test_log_probabilities_come_along(server: FakeServer, client: Client) -> None:
    def answer(*_: object) -> Events:
        yield accepted()
        top = [pb.TopLogprob(token_id=8, logprob=-0.1)]
        logprob = pb.Logprob(token_id=9, logprob=-0.5, top=top)
        yield event(1, token=pb.Token(token_ids=[9], logprobs=[logprob]))
        yield event(2, summary=pb.Summary())

    server.stream = answer
    sample = client.stream("p").result().samples[0]
    assert (sample.logprobs[0].token_id, sample.logprobs[0].logprob, sample.logprobs[0].top) == (9, -0.5, ((8, -0.1),))


def test_break_cancels_at_the_server(server: FakeServer, client: Client) -> None:
    server.stream = until_left
    stream = client.stream("p")
    for _ in stream:
        break
    assert server.left.wait(PATIENCE_S)
    assert stream.text == "x"


def test_break_cancels_where_nobody_keeps_the_stream(server: FakeServer, client: Client) -> None:
    server.stream = until_left
    for _ in client.stream("p").events():
        break
    assert server.left.wait(PATIENCE_S)


def test_an_exception_in_the_loop_cancels(server: FakeServer, client: Client) -> None:
    server.stream = until_left

    def read() -> None:
        for _ in client.stream("p"):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        read()
    assert server.left.wait(PATIENCE_S)


def test_leaving_the_with_without_reading_cancels(server: FakeServer, client: Client) -> None:
    server.stream = silent
    with client.stream("p") as stream:
        next(stream.events())
    assert server.left.wait(PATIENCE_S)


def test_close_from_another_thread_wakes_the_reader(server: FakeServer, client: Client) -> None:
    server.stream = silent
    stream = client.stream("p")
    events = stream.events()
    next(events)
    threading.Thread(target=stream.close).start()
    with pytest.raises(Cancelled):
        next(events)


def test_a_stream_that_was_left_cannot_be_taken_up_again(server: FakeServer, client: Client) -> None:
    server.stream = until_left
    stream = client.stream("p")
    for _ in stream:
        break
    with pytest.raises(Cancelled):
        list(stream)


def test_a_stream_that_was_read_to_its_end_has_nothing_more(client: Client) -> None:
    stream = client.stream("p")
    assert list(stream) == ["Hi", "!"]
    assert list(stream) == []
    assert stream.result().text == "Hi!"


def test_the_deadline_ends_the_stream_and_the_server_knows(server: FakeServer, client: Client) -> None:
    server.stream = silent
    for timeout in (1.0, 10.0, 60.0):  # where the machine is busy a request may come too late for the first of these
        with pytest.raises(DeadlineExceeded):
            list(client.stream("p", timeout=timeout))
        if server.seen:
            break
    assert server.left.wait(PATIENCE_S)


def test_the_clients_own_timeout_holds_where_the_call_has_none(server: FakeServer) -> None:
    server.stream = silent
    with Client(server.address, timeout=0.2) as client, pytest.raises(DeadlineExceeded):
        client.stream("p").result()


def test_an_error_in_mid_stream_keeps_what_came_and_is_not_tried_again(server: FakeServer, client: Client) -> None:
    def lost(_generation: pb.Generation, context: grpc.ServicerContext) -> Events:
        yield accepted()
        yield token(1, "Once")
        refuse(context, grpc.StatusCode.UNAVAILABLE, "WORKER_LOST")

    server.stream = lost
    stream = client.stream("p")
    with pytest.raises(Unavailable) as caught:
        list(stream)
    assert caught.value.reason == "WORKER_LOST"
    assert stream.text == "Once"
    assert len(server.seen) == 1


@pytest.mark.parametrize(
    "events",
    [[accepted(), token(2, "x")], [token(1, "x")], [accepted(), token(1, "x")]],
    ids=["a gap", "no beginning", "no end"],
)
def test_a_stream_with_something_missing_is_an_error(server: FakeServer, client: Client, events: Any) -> None:
    server.stream = lambda *_: iter(events)
    with pytest.raises(Internal) as caught:
        list(client.stream("p"))
    assert caught.value.reason == "STREAM_BROKEN"


def test_an_event_of_a_newer_server_is_passed_over(server: FakeServer, client: Client) -> None:
    def newer(*_: object) -> Events:
        events = list(whole("a"))
        events.insert(1, event(0))
        for sequence, e in enumerate(events):
            e.sequence = sequence
            yield e

    server.stream = newer
    assert client.stream("p").result().text == "a"


def test_streams_of_several_threads_share_a_client(server: FakeServer, client: Client) -> None:
    server.stream = lambda generation, _: whole(generation.text)
    answers: dict[str, str] = {}
    threads = [
        threading.Thread(target=lambda n=str(n): answers.update({n: client.stream(n).result().text})) for n in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == {str(n): str(n) for n in range(6)}
