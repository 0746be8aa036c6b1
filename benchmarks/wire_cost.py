"""Measures what an internal message costs a worker: building or reading it, protobuf, and the system call.

usage: python benchmarks/wire_cost.py [--save]

The peer is a process of its own that reads and answers as the coordinator does, over the same socket kind. Times are
of the worker's thread (CPU time), so a peer that shares the core does not count.
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import zmq
from provenance import save
from rich.console import Console
from rich.table import Table

from semipd.core.request import SamplingParams, StoppingParams
from semipd.internal.v1 import worker_pb2 as wk
from semipd.wire.codec import sampling_to_wire, stopping_to_wire
from semipd.wire.sockets import RunDir, bind_router
from semipd.workers.coordinator_link import CoordinatorLink

ROUNDS = 3000


def peer(run_dir: str) -> None:
    """Swallows what comes; answers `hello` with as many Adopts as its pid says, and `failed` by ending."""
    router = bind_router(zmq.Context(), RunDir(Path(run_dir)).worker_endpoint)
    continuation = wk.Continuation(
        sampling=sampling_to_wire(SamplingParams()),
        stopping=stopping_to_wire(StoppingParams(200, 0, frozenset({2}))),
        output=[7],
    )
    adopt = wk.Adopt(lease=1, request_id="x" * 32, context=300, continuation=continuation, sequence=1, ordinal=1)
    frame = wk.ToWorker(adopt=adopt).SerializeToString()
    while True:
        identity, said = router.recv_multipart()
        message = wk.FromWorker.FromString(said)
        if message.HasField("failed"):
            return
        for _ in range(message.hello.pid if message.HasField("hello") else 0):
            router.send_multipart((identity, frame))


def step_of(rows: int) -> wk.StepDone:
    step = wk.StepDone(step=1, seconds=0.005, context_tokens=1000 * rows)
    step.leases.extend(range(65536, 65536 + rows))
    step.tokens.extend(range(30_000, 30_000 + rows))
    step.positions.extend(range(100, 100 + rows))
    return step


def cost_us(act: Callable[[], object]) -> float:
    """Median over blocks, in microseconds of this thread's CPU time a call."""
    blocks = []
    for _ in range(10):
        start = time.thread_time()
        for _ in range(ROUNDS // 10):
            act()
        blocks.append((time.thread_time() - start) / (ROUNDS // 10) * 1e6)
    return sorted(blocks)[len(blocks) // 2]


def send_step(link: CoordinatorLink, rows: int) -> None:
    link.send(wk.FromWorker(step_done=step_of(rows)))


def measure(link: CoordinatorLink) -> dict[str, float]:
    def receive_adopt() -> wk.Adopt:
        message = link.receive(wait_s=1.0)
        assert message is not None
        return message.adopt

    link.send(wk.FromWorker(hello=wk.WorkerHello(pid=ROUNDS + 1)))
    receive_adopt()
    time.sleep(0.5)  # let them all arrive: waiting for the peer is not the message's cost
    figures = {"receive Adopt": cost_us(receive_adopt)}
    for rows in (1, 16, 64):
        figures[f"send StepDone, {rows} rows"] = cost_us(partial(send_step, link, rows))
    beat = wk.Heartbeat(pulses=1, leases=range(64))
    figures["send Heartbeat, 64 leases"] = cost_us(lambda: link.send(wk.FromWorker(heartbeat=beat)))
    figures["look for a message, none there"] = cost_us(link.receive)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/wire_cost.json")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="semipd-") as folder:
        other = multiprocessing.get_context("spawn").Process(target=peer, args=(folder,))
        other.start()
        with CoordinatorLink(Path(folder), 1) as link:
            figures = measure(link)
            link.send(wk.FromWorker(failed=wk.Failed()))
            other.join(10)
    table = Table("message", "µs")
    for name, value in figures.items():
        table.add_row(name, f"{value:.1f}")
    Console().print(table)
    if given.save:
        print(save("wire_cost", {"microseconds": figures}))


if __name__ == "__main__":
    main()
