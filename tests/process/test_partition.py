"""The partition back end `cores`, as the kernel sees it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial

import pytest

from support.server import RunningServer, until

pytestmark = pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one CPU can't be divided")


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    with RunningServer("--partition", "cores", "--no-spare-worker") as running:
        yield running


def cpus_of(pid: int) -> set[int]:
    """Returns the CPUs on which any thread of the process may run."""
    found: set[int] = set()
    for thread in os.listdir(f"/proc/{pid}/task"):
        found |= os.sched_getaffinity(int(thread))
    return found


def may_run_on(pid: int, cpus: set[int]) -> bool:
    return cpus_of(pid) == cpus


def test_shares_that_add_up_to_100_mean_disjoint_cpus_while_streams_run(server: RunningServer) -> None:
    with server.client() as client, client.stream("The harbour", max_tokens=300, ignore_eos=True) as stream:
        texts = iter(stream)
        next(texts)
        granted = client.set_partition(prefill=50, decode=50)
        assert granted.prefill + granted.decode <= 100
        prefill, decode = server.pid("prefill"), server.pid("decode")
        assert until(lambda: not cpus_of(prefill) & cpus_of(decode))
        for _ in texts:
            pass
        assert stream.usage is not None
        assert stream.usage.output_tokens == 300


def test_full_shares_mean_all_cpus_for_both(server: RunningServer) -> None:
    everything = os.sched_getaffinity(0)
    with server.client() as client:
        client.set_partition(prefill=100, decode=100)
        for role in ("prefill", "decode"):
            assert until(partial(may_run_on, server.pid(role), everything))


def test_a_worker_that_is_replaced_keeps_the_share(server: RunningServer) -> None:
    with server.client() as client:
        client.set_partition(prefill=50, decode=50)
        dead = server.kill("decode")
        successor = until(lambda: (pid := server.pid("decode")) != dead and pid)
        assert until(lambda: not cpus_of(successor) & cpus_of(server.pid("prefill")))
