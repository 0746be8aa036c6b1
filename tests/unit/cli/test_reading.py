from __future__ import annotations

import io

import pytest
from fake_server import FakeServer, accepted, event, token

from semipd.cli.reading import ending, read_aloud, summary_line
from semipd.cli.terminal import Voice
from semipd_client import Client, Finish, FinishReason
from semipd_client._proto.semipd.v1 import generation_pb2 as pb


class Ticks:
    """A clock that is read at the beginning, at each token and at the end."""

    def __init__(self, *moments: float) -> None:
        self._moments = iter(moments)

    def __call__(self) -> float:
        return next(self._moments)


def test_ttft_is_to_the_first_token_and_tpot_the_average_after_it(server: FakeServer) -> None:
    server.stream = lambda *_: iter([accepted(), *(token(n, "x") for n in (1, 2, 3)), event(4, summary=pb.Summary())])
    with Client(server.address) as client:
        stream, pace = read_aloud(lambda: client.stream("p"), clock=Ticks(10.0, 10.5, 10.6, 10.9, 11.0))
    assert pace.ttft_s == pytest.approx(0.5)
    assert pace.tpot_s == pytest.approx(0.2)
    assert pace.total_s == pytest.approx(1.0)
    assert "TTFT 500.0 ms · TPOT 200.00 ms (5 tok/s)" in summary_line(stream, pace)


def test_tokens_that_come_together_are_counted_each(server: FakeServer) -> None:
    several = event(2, token=pb.Token(text="abc", token_ids=[1, 2, 3, 4]))
    server.stream = lambda *_: iter([accepted(), token(1, "x"), several, event(3, summary=pb.Summary())])
    with Client(server.address) as client:
        _, pace = read_aloud(lambda: client.stream("p"), clock=Ticks(0.0, 1.0, 3.0, 3.0))
    assert pace.tpot_s == pytest.approx(0.5)


def test_one_token_has_no_tpot(server: FakeServer) -> None:
    server.stream = lambda *_: iter([accepted(), token(1, "x"), event(2, summary=pb.Summary())])
    with Client(server.address) as client:
        stream, pace = read_aloud(lambda: client.stream("p"), clock=Ticks(0.0, 1.0, 1.0))
    assert pace.tpot_s is None
    assert "TPOT" not in summary_line(stream, pace)


def test_the_answer_ends_with_a_line_end(server: FakeServer) -> None:
    heard = io.StringIO()
    with Client(server.address) as client:
        read_aloud(lambda: client.stream("p"), Voice(heard))
    assert heard.getvalue() == "Hi!\n"


@pytest.mark.parametrize(
    ("finish", "text"),
    [
        (Finish(FinishReason.LENGTH), "length"),
        (Finish(FinishReason.STOP, stop="\n"), "stop text '\\n'"),
        (Finish(FinishReason.STOP, stop_token_id=2), "stop token 2"),
    ],
)
def test_endings_in_words(finish: Finish, text: str) -> None:
    assert ending(finish) == text
