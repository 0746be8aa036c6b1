"""Mixed batches in a real server: the same answers as side by side, whoever dies and whatever policy comes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest

from semipd_client import Client, Token, Unavailable
from support.server import RunningServer, until

PROMPTS = [list(range(20, 20 + n)) for n in (3, 40, 90, 150, 17, 64)]
TOKENS = 60
Answers = dict[int, list[int]]


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    with RunningServer("--policy", "chunked", "--policy-option", "budget=48") as running:
        yield running


@pytest.fixture(scope="module")
def expected() -> Answers:
    """The answers side by side, first come, first served. Odd numbers are drawn, even ones greedy."""
    with RunningServer("--policy", "fcfs") as running:
        return all_at_once(running)


def asked(client: Client, number: int) -> list[int]:
    how = {"temperature": 0.8, "seed": 100 + number} if number % 2 else {"temperature": 0.0}
    answer = client.generate(PROMPTS[number], max_tokens=TOKENS, ignore_eos=True, **how)  # type: ignore[arg-type]
    return list(answer.samples[0].token_ids)


def all_at_once(server: RunningServer, meanwhile: Callable[[], object] = lambda: None) -> Answers:
    """Returns the answers to all prompts, asked for at the same time."""
    answers: Answers = {}
    with server.client() as client:
        threads = [
            threading.Thread(target=lambda n=n: answers.update({n: asked(client, n)})) for n in range(len(PROMPTS))
        ]
        for thread in threads:
            thread.start()
        meanwhile()
        for thread in threads:
            thread.join()
    return answers


def modes(server: RunningServer) -> list[object]:
    return [record["mode"] for record in server.records() if record.get("event") == "mode changed"]


def test_answers_are_those_of_separate_phases(server: RunningServer, expected: Answers) -> None:
    assert all_at_once(server) == expected
    assert modes(server) == ["mixed"]
    assert server.free_pages_are_back()


def test_policies_change_under_load_and_nothing_is_lost(server: RunningServer, expected: Answers) -> None:
    def change() -> None:
        with server.client() as client:
            for _ in range(5):
                client.set_policy("static", {"chunk": "32"})
                asked(client, 0)
                client.set_policy("chunked", {"budget": "40"})
                asked(client, 0)

    before = len(modes(server))
    assert all_at_once(server, change) == expected
    assert modes(server)[before:] == ["split", "mixed"] * 5
    assert server.free_pages_are_back()


@pytest.mark.parametrize("role", ["decode", "prefill"])
def test_a_killed_worker_costs_a_pause(server: RunningServer, expected: Answers, role: str) -> None:
    assert all_at_once(server, lambda: server.kill(role)) == expected
    assert server.free_pages_are_back()


def test_a_stream_goes_on_without_gap_or_double_after_the_worker_that_has_everything_was_killed(
    server: RunningServer, expected: Answers
) -> None:
    got: list[int] = []
    kills = [40, 15]
    with (
        server.client() as client,
        client.stream(PROMPTS[2], max_tokens=TOKENS, temperature=0.0, ignore_eos=True) as stream,
    ):
        for event in stream.events():
            if isinstance(event, Token):
                got.extend(event.token_ids)
                if kills and len(got) >= kills[-1]:
                    kills.pop()
                    server.kill("decode")
    assert not kills, "the stream was over before the fault"
    assert got == expected[2]
    assert server.free_pages_are_back()


def test_with_the_resident_everything_is_lost_and_the_server_mixes_again(
    server: RunningServer, expected: Answers
) -> None:
    """Prompts are in a pass, queued and half computed when it goes."""
    refused: list[Unavailable] = []

    def long(client: Client) -> None:
        try:
            client.generate([7] * 400, max_tokens=400, temperature=0.0, ignore_eos=True)
        except Unavailable as error:
            refused.append(error)

    with server.client() as client:
        threads = [threading.Thread(target=long, args=(client,)) for _ in range(6)]
        for thread in threads:
            thread.start()
        until(lambda: client.load().prefilling)
        server.kill("resident")
        for thread in threads:
            thread.join()
        assert len(refused) == 6
        assert until(client.is_serving)
    assert all_at_once(server) == expected
    assert server.free_pages_are_back()


def test_in_a_pool_too_small_for_all_everybody_gets_the_same_answer(expected: Answers) -> None:
    """Prompts and running sequences take pages from each other all the time."""
    small = ("--max-context", "256", "--kv-pages", "20")
    with RunningServer("--policy", "chunked", "--policy-option", "budget=64", *small) as server:
        assert all_at_once(server) == expected
        assert server.free_pages_are_back()
