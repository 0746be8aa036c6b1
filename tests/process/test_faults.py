"""Faults injected for real: processes are killed and stopped, and clients see a pause, no gap and no duplicate."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator

import psutil
import pytest

from semipd_client import Client, ResourceExhausted, Token, Unavailable
from support.server import PATIENCE_S, RunningServer, until

PROMPT = list(range(20, 80))
TOKENS = 200
LONG = 900
"""Tokens of streams that a fault is to end: still running when it strikes."""


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    with RunningServer("--stall-unhealthy-s", "0.5", "--stall-replace-s", "1.5") as running:
        yield running


@pytest.fixture
def client(server: RunningServer) -> Iterator[Client]:
    with server.client() as made:
        yield made


@pytest.fixture(scope="module")
def undisturbed(server: RunningServer) -> list[int]:
    with server.client() as client:
        return greedy(client)


def greedy(client: Client) -> list[int]:
    answer = client.generate(PROMPT, max_tokens=TOKENS, temperature=0.0, ignore_eos=True)
    return list(answer.samples[0].token_ids)


def streamed(client: Client, disturb: dict[int, object], tokens: int = TOKENS) -> list[int]:
    """The tokens of a stream during which, after so many tokens, something is done."""
    got: list[int] = []
    with client.stream(PROMPT, max_tokens=tokens, temperature=0.0, ignore_eos=True) as stream:
        for event in stream.events():
            if isinstance(event, Token):
                got.extend(event.token_ids)
                for after in [n for n in disturb if n <= len(got)]:
                    disturb.pop(after)()  # type: ignore[operator]
    assert not disturb, "the stream was over before the fault"
    return got


@pytest.mark.parametrize("roles", [["decode"], ["prefill"], ["decode", "prefill"]], ids=" and ".join)
def test_a_killed_worker_leaves_no_gap_and_no_duplicate(
    server: RunningServer, client: Client, undisturbed: list[int], roles: list[str]
) -> None:
    def kill() -> None:
        for role in roles:
            server.kill(role)

    assert streamed(client, {20: kill}) == undisturbed
    assert server.free_pages_are_back()


def test_a_second_kill_while_the_first_is_mended(server: RunningServer, client: Client, undisturbed: list[int]) -> None:
    assert streamed(client, {5: lambda: server.kill("decode"), 6: lambda: server.kill("decode")}) == undisturbed


def test_a_prefill_worker_killed_in_mid_prompt(server: RunningServer, client: Client, undisturbed: list[int]) -> None:
    """Many prompts at once keep it busy, so that the kill hits it at work."""
    answers: dict[int, list[int]] = {}
    threads = [threading.Thread(target=lambda n=n: answers.update({n: greedy(client)})) for n in range(8)]
    for thread in threads:
        thread.start()
    server.kill("prefill")
    for thread in threads:
        thread.join()
    assert [answers[n] for n in range(8)] == [undisturbed] * 8
    assert server.free_pages_are_back()


def test_a_stopped_worker_is_replaced_and_what_it_says_later_is_refused(
    server: RunningServer, client: Client, undisturbed: list[int]
) -> None:
    assert streamed(client, {10: lambda: server.kill("decode", signal.SIGSTOP)}) == undisturbed


def test_while_no_token_moves_the_server_is_not_serving(
    server: RunningServer, client: Client, undisturbed: list[int]
) -> None:
    """Stopped before the stream begins: its first token is the prefill worker's, and no other follows meanwhile."""
    server.kill("decode", signal.SIGSTOP)
    with client.stream(PROMPT, max_tokens=TOKENS, temperature=0.0, ignore_eos=True) as stream:
        events = (event for event in stream.events() if isinstance(event, Token))
        got = list(next(events).token_ids)
        assert until(lambda: not client.is_serving())
        assert got == undisturbed[:1]
        for event in events:
            got.extend(event.token_ids)
    assert got == undisturbed
    assert until(client.is_serving)


def test_a_lost_gateway_ends_its_own_streams_and_its_successor_has_the_same_port(
    server: RunningServer, client: Client, undisturbed: list[int]
) -> None:
    with pytest.raises(Unavailable):
        streamed(client, {5: lambda: server.kill("gateway")}, LONG)
    with server.client() as fresh:
        fresh.wait_ready(timeout=90)
        assert greedy(fresh) == undisturbed
        assert server.free_pages_are_back()


def test_a_lost_resident_is_told_at_once_and_the_server_starts_cold(
    server: RunningServer, undisturbed: list[int]
) -> None:
    with server.client() as client:
        with pytest.raises(Unavailable) as caught:
            streamed(client, {5: lambda: server.kill("resident")}, LONG)
        assert caught.value.reason == "WORKER_LOST"
        assert until(client.is_serving)
        assert greedy(client) == undisturbed


def test_a_full_queue_refuses_with_a_reason_and_a_delay_and_the_others_finish() -> None:
    with (
        RunningServer("--max-waiting", "4", "--max-running", "2", "--no-spare-worker") as server,
        server.client() as client,
    ):
        outcomes: list[object] = []

        def ask() -> None:
            try:
                outcomes.append(len(greedy(client)))
            except ResourceExhausted as error:
                outcomes.append((error.reason, error.retry_after_s is not None))

        threads = [threading.Thread(target=ask) for _ in range(40)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert set(outcomes) == {TOKENS, ("QUEUE_FULL", True)}
        assert server.free_pages_are_back()


def test_when_the_pool_is_too_small_for_all_everybody_finishes(undisturbed: list[int]) -> None:
    """Eight sequences of 17 pages each in a pool of 64: preemption makes progress, and outputs are the same."""
    with (
        RunningServer("--kv-pages", "64", "--max-context", "1024", "--no-spare-worker") as server,
        server.client() as client,
    ):
        answers: dict[int, list[int]] = {}
        threads = [threading.Thread(target=lambda n=n: answers.update({n: greedy(client)})) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [answers[n] for n in range(8)] == [undisturbed] * 8
        assert server.free_pages_are_back()


def test_nothing_is_left_of_a_server_whose_coordinator_is_killed() -> None:
    with RunningServer() as server:
        family = server.family()
        assert len(family) >= 5
        server.process.kill()  # type: ignore[union-attr]
        # Whoever adopts orphans here may be slow to bury them: a zombie is dead.
        assert until(lambda: not any(lives(p) for p in family[1:]))


def lives(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_sigterm_under_load_drains_and_exits_with_0(undisturbed: list[int]) -> None:
    with RunningServer("--no-spare-worker") as server, server.client() as client:
        process = server.process
        assert process is not None
        assert streamed(client, {10: lambda: process.send_signal(signal.SIGTERM)}) == undisturbed
        assert process.wait(PATIENCE_S) == 0


def test_a_second_sigterm_ends_at_once() -> None:
    with RunningServer("--no-spare-worker") as server, server.client() as client:
        process = server.process
        assert process is not None

        def twice() -> None:
            process.send_signal(signal.SIGTERM)
            assert until(lambda: client.load().draining)
            process.send_signal(signal.SIGTERM)

        with pytest.raises(Unavailable):
            streamed(client, {10: twice}, LONG)
        process.wait(PATIENCE_S)
        assert not [p for p in psutil.process_iter() if p.ppid() == process.pid]


def test_nobody_listens_but_on_the_one_port() -> None:
    """One TCP port, and sockets that only the owner may open."""
    with RunningServer("--no-spare-worker") as server:
        listening = [
            c for p in server.family() for c in p.net_connections(kind="inet") if c.status == psutil.CONN_LISTEN
        ]
        assert [c.laddr.port for c in listening] == [int(server.address.rpartition(":")[2])]
        assert {c.laddr.ip.removeprefix("::ffff:") for c in listening} == {"127.0.0.1"}
        addresses = [str(c.laddr) for p in server.family() for c in p.net_connections(kind="unix")]
        unix = [address for address in addresses if "semipd-" in address]
        folders = {os.path.dirname(path) for path in unix}
        assert folders
        assert all(os.stat(folder).st_mode & 0o777 == 0o700 for folder in folders)
