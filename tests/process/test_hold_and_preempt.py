"""A policy that holds running sequences back and preempts them, in a running server: clients get the same tokens."""

from __future__ import annotations

import os
import re
import threading
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest

from support.server import RunningServer, until

JUGGLER = '''
from dataclasses import replace

from semipd.core.partition import Mode
from semipd.policies import Plan, Policy, Snapshot
from semipd.policies.builtin.fcfs import Fcfs


class Juggler(Policy):
    """Holds other sequences back with each few plans, now and then all, and preempts one after the other."""

    name = "juggler"

    def __init__(self, options=None) -> None:
        super().__init__(options)
        self._fcfs = Fcfs()
        self._plans = 0

    def plan(self, snapshot: Snapshot) -> Plan:
        self._plans += 1
        turn = self._plans // 3
        running = [r.sequence for r in snapshot.running]
        held = {n for n in running if turn % 5 == 4 or (turn + n) % 3 == 0}
        preempt = running[turn % len(running)] if running and self._plans % 20 == 0 else None
        plan = self._fcfs.plan(snapshot)
        mode = Mode.MIXED if turn // 10 % 2 else Mode.SPLIT
        preempted = () if preempt is None else (preempt,)
        return replace(plan, mode=mode, hold=frozenset(held - {preempt}), preempt=preempted)


class Holder(Policy):
    """Holds back everything, for good."""

    name = "holder"

    def plan(self, snapshot: Snapshot) -> Plan:
        return replace(Fcfs().plan(snapshot), hold=frozenset(r.sequence for r in snapshot.running))
'''
REQUESTS: list[dict[str, Any]] = [
    {"prompt": list(range(20, 80)), "max_tokens": 120},
    {"prompt": list(range(30, 47)), "max_tokens": 90, "frequency_penalty": 0.7, "repetition_penalty": 1.2},
    {"prompt": list(range(5, 25)), "max_tokens": 100, "presence_penalty": 0.9},
    {"prompt": list(range(60, 160)), "max_tokens": 60},
    {"prompt": [9, 8, 7], "max_tokens": 120, "logit_bias": {40: 1.5}},
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    folder = tmp_path_factory.mktemp("site")
    (folder / "juggler.py").write_text(JUGGLER)
    info = folder / "juggler-0.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: juggler\nVersion: 0.1\n")
    (info / "entry_points.txt").write_text("[semipd.policies]\njuggler = juggler:Juggler\nholder = juggler:Holder\n")
    path = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])
    options = ("--policy", "fcfs", "--metrics-port", "0", "--stall-unhealthy-s", "0.5", "--stall-replace-s", "1.5")
    with RunningServer(*options, environment={"PYTHONPATH": path}) as running:
        yield running


def answers(server: RunningServer) -> list[list[int]]:
    """Sends all requests at once and returns the tokens of each."""
    found: dict[int, list[int]] = {}

    def ask(number: int) -> None:
        with server.client() as client:
            answer = client.generate(**REQUESTS[number], temperature=0.0, ignore_eos=True)
            found[number] = list(answer.samples[0].token_ids)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(len(REQUESTS))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [found[number] for number in range(len(REQUESTS))]


@pytest.fixture(scope="module")
def undisturbed(server: RunningServer) -> list[list[int]]:
    """The answers under `fcfs`."""
    return answers(server)


def metric(server: RunningServer, name: str) -> float:
    found = until(lambda: re.search(r"http://127\.0\.0\.1:\d+/metrics", server.log()))
    text = urllib.request.urlopen(found.group(0)).read().decode()
    (line,) = (line for line in text.splitlines() if line.startswith(f"{name} "))
    return float(line.split()[-1])


def test_answers_are_the_same_with_holds_and_preemptions(server: RunningServer, undisturbed: list[list[int]]) -> None:
    with server.client() as client:
        client.set_policy("juggler")
    assert answers(server) == undisturbed
    with server.client() as client:
        assert [p.name for p in client.policies() if p.active] == ["juggler"], "it keeps its contract"
    assert metric(server, "semipd:num_preemptions_total") > 2
    assert server.free_pages_are_back()


def test_answers_are_the_same_when_the_workers_die_meanwhile(
    server: RunningServer, undisturbed: list[list[int]]
) -> None:
    with server.client() as client:
        client.set_policy("juggler")
    got: list[list[list[int]]] = []
    asking = threading.Thread(target=lambda: got.append(answers(server)))
    asking.start()
    with server.client() as client:
        until(lambda: client.load().decoding > 1)
    server.kill("decode")
    server.kill("prefill")
    asking.join()
    assert got == [undisturbed]
    assert server.free_pages_are_back()


def test_a_server_whose_policy_holds_everything_is_healthy_and_goes_on_with_another(
    server: RunningServer, undisturbed: list[list[int]]
) -> None:
    with server.client() as client:
        client.set_policy("holder")
        before = client.load().worker_restarts_total
        got: list[list[list[int]]] = []
        asking = threading.Thread(target=lambda: got.append(answers(server)))
        asking.start()
        until(lambda: client.load().decoding == len(REQUESTS))
        asking.join(2.5)
        assert asking.is_alive(), "held for longer than a stall may last"
        assert client.is_serving()
        assert client.load().worker_restarts_total == before
        client.set_policy("fcfs")
        asking.join()
    assert got == [undisturbed]
    assert server.free_pages_are_back()
