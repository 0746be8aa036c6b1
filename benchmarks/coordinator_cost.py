"""Measures what the coordinator's loop costs in CPU time: `python benchmarks/coordinator_cost.py [--policies
adaptive]`.

A real coordinator (request table, page account, policy, sockets to the gateways) hears messages as they come from the
wire; this process plays the workers and reads what the gateways get. Prints microseconds of the
thread's CPU time for each event, with a given number of sequences running and waiting. Everything else waits that long,
and a first token comes that much later. No model is computed.
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from itertools import count, product
from pathlib import Path
from statistics import median
from types import TracebackType
from typing import Self

import zmq

from semipd.coordinator.coordinator import Coordinator
from semipd.coordinator.metrics import Metrics
from semipd.coordinator.partition import PartitionController
from semipd.coordinator.policy_host import PolicyHost
from semipd.coordinator.requests import RequestTable
from semipd.coordinator.state import CoordinatorState, Worker
from semipd.coordinator.transport import ZmqTransport
from semipd.core.clock import ManualClock
from semipd.core.config import ServerConfig, pages_for, resolve
from semipd.core.request import Request, SamplingParams, Slo, StoppingParams
from semipd.internal.v1 import gateway_pb2 as gw
from semipd.internal.v1 import worker_pb2 as wk
from semipd.memory.account import PageAccount, Role
from semipd.memory.control import CONTROL_BYTES, ControlBlock
from semipd.policies.registry import make_policy
from semipd.wire.codec import request_to_wire
from semipd.wire.logging import configure_logging
from semipd.wire.sockets import RunDir, connect_dealer

GATEWAYS = 4
PAGES, LEASES = 100_000, 4096
PROMPT = 256
STEP_S = 0.012
EVENTS = ("step", "plan", "arrival", "prefill")


class SerialisingTransport(ZmqTransport):
    """Sends to the gateways as the real transport does. Messages to the workers are serialised and kept."""

    def __init__(self, run_dir: RunDir) -> None:
        super().__init__(run_dir)
        self.to_workers: list[tuple[int, wk.ToWorker]] = []

    def to_worker(self, incarnation: int, message: wk.ToWorker) -> None:
        message.SerializeToString()
        self.to_workers.append((incarnation, message))


class Rig:
    """A coordinator whose workers and gateways this process plays."""

    def __init__(self, run_dir: RunDir, transport: SerialisingTransport, policy: str) -> None:
        self.clock, self.transport = ManualClock(100.0), transport
        config = resolve(ServerConfig(partition="green", max_running=1024, log_level="warning"), "cuda")
        configure_logging(config, "coordinator")
        account = PageAccount.create(memoryview(bytearray(PageAccount.bytes_needed(PAGES, LEASES))), PAGES, LEASES)
        state = CoordinatorState(
            config, self.clock, transport, RequestTable(config.max_waiting), Metrics(), account=account
        )
        state.control = ControlBlock(memoryview(bytearray(CONTROL_BYTES)))
        partition = PartitionController(state, [0])
        partition.device_known(132)
        host = PolicyHost(make_policy(policy, {}), 10.0, lambda name, why: print(f"{name} {why}"))
        self.state, self.host = state, host
        self.coordinator = Coordinator(state, host, partition, "played", list)
        for incarnation, role in enumerate((Role.PREFILL, Role.DECODE), 1):
            state.workers[role] = Worker(role, incarnation, True, assigned_s=self.clock.now())
        self.batches: list[tuple[Worker, wk.PrefillBatch]] = []
        self.positions: dict[int, int] = {}
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._gateways = [
            connect_dealer(self._context, run_dir.gateway_endpoint, f"gateway.{n}") for n in range(GATEWAYS)
        ]
        for gateway in self._gateways:
            gateway.send(gw.FromGateway(hello=gw.GatewayHello(pid=1, port=1)).SerializeToString())
        heard: set[bytes] = set()
        while len(heard) < GATEWAYS:
            heard.update(identity for identity, _ in transport.from_gateways())
        self._tickets = count(1)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for gateway in self._gateways:
            gateway.close()
        self._context.term()

    # --- what comes from the wire -----------------------------------------------------------------------------------

    def arrival(self) -> tuple[bytes, bytes]:
        """Returns the next request: its gateway, and the frame that the gateway sends."""
        ticket = next(self._tickets)
        request = Request(
            request_id=f"request-{ticket}",
            prompt=tuple(range(1, PROMPT + 1)),
            sampling=SamplingParams(temperature=0.0),
            stopping=StoppingParams(4096),
            slo=Slo(0.25, 0.03),
        )
        frame = gw.FromGateway(submit=request_to_wire(ticket, request)).SerializeToString()
        return f"gateway.{ticket % GATEWAYS}".encode(), frame

    def submit(self, gateway: bytes, frame: bytes) -> None:
        self.coordinator.on_gateway_message(gateway, gw.FromGateway.FromString(frame))

    def worker_says(self, worker: Worker, frame: bytes) -> None:
        self.coordinator.on_worker_message(worker, wk.FromWorker.FromString(frame))

    def step(self) -> bytes:
        leases = list(self.positions)
        done = wk.StepDone(seconds=STEP_S, leases=leases, tokens=[1234] * len(leases), context_tokens=400 * len(leases))
        for lease in leases:
            done.positions.append(self.positions[lease])
            self.positions[lease] += 1
        return wk.FromWorker(step_done=done).SerializeToString()

    def answer(self, worker: Worker, batch: wk.PrefillBatch) -> bytes:
        """Returns the answer to a batch that was computed whole, with first tokens where prompts end."""
        done = wk.PrefillDone(batch=batch.batch, seconds=0.01)
        for chunk in batch.chunks:
            end = chunk.start + len(chunk.tokens)
            table = self.state.pages.table(chunk.lease)
            self.state.pages.take(chunk.lease, pages_for(end) - len(table), worker.holder)
            said = done.chunks.add(lease=chunk.lease, outcome=wk.CHUNK_OUTCOME_COMPUTED, computed=end)
            if chunk.HasField("continuation"):
                said.sampled.token, said.sampled.position = 1234, 0
        return wk.FromWorker(prefill_done=done).SerializeToString()

    # --- the loop ---------------------------------------------------------------------------------------------------

    def settle(self) -> None:
        """Takes the messages that were sent, so that nothing piles up."""
        self.transport.flush()
        by_incarnation = {worker.incarnation: worker for worker in self.state.workers.values()}
        for incarnation, message in self.transport.to_workers:
            if message.HasField("prefill"):
                self.batches.append((by_incarnation[incarnation], message.prefill))
            elif message.HasField("adopt"):
                self.positions[message.adopt.lease] = len(message.adopt.continuation.output)
        self.transport.to_workers.clear()
        for gateway in self._gateways:
            while gateway.poll(0):
                gateway.recv()

    def load(self, running: int, waiting: int) -> None:
        """Brings `running` sequences into the decode batch; `waiting` more wait while the prefill worker has no
        room."""
        for _ in range(running):
            self.submit(*self.arrival())
        while len(self.positions) < running:
            self.clock.advance(STEP_S)
            self.coordinator.act()
            self.settle()
            batches, self.batches = self.batches, []
            for worker, batch in batches:
                self.worker_says(worker, self.answer(worker, batch))
        for _ in range(waiting):
            self.submit(*self.arrival())


def cpu_us(work: Callable[[], object]) -> float:
    before = time.thread_time()
    work()
    return (time.thread_time() - before) * 1e6


def measure(rig: Rig, rounds: int) -> dict[str, float]:
    """Returns the median microseconds of each event."""
    spent: dict[str, list[float]] = {event: [] for event in EVENTS}
    coordinator, decode = rig.coordinator, rig.state.workers[Role.DECODE]

    def plan() -> None:
        rig.host.plan(coordinator.snapshot())

    def heard(worker: Worker, frame: bytes) -> float:
        def hear() -> None:
            rig.worker_says(worker, frame)
            rig.transport.flush()

        return cpu_us(hear)

    for _ in range(rounds):
        rig.clock.advance(STEP_S)
        spent["step"].append(heard(decode, rig.step()))
        rig.settle()
        spent["plan"].append(cpu_us(plan))
    for _ in range(rounds):
        rig.clock.advance(0.0001)
        spent["arrival"].append(cpu_us(partial(rig.submit, *rig.arrival())))
        rig.settle()
    for _ in range(rounds):
        rig.clock.advance(STEP_S)
        coordinator.act()
        rig.settle()
        if rig.batches:
            worker, batch = rig.batches.pop(0)
            spent["prefill"].append(heard(worker, rig.answer(worker, batch)))
            rig.settle()
    return {event: median(each) for event, each in spent.items()}


def measured(
    policy: str, running: int, waiting: int, rounds: int, profile: cProfile.Profile | None
) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        run_dir = RunDir(Path(folder))
        with SerialisingTransport(run_dir) as transport, Rig(run_dir, transport, policy) as rig:
            rig.load(running, waiting)
            with profile or nullcontext():
                return measure(rig, rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policies", nargs="+", default=["adaptive", "fcfs"])
    parser.add_argument("--running", nargs="+", type=int, default=[64, 256, 400])
    parser.add_argument("--waiting", nargs="+", type=int, default=[0, 16])
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--profile", action="store_true", help="says where the time goes (and takes more of it)")
    given = parser.parse_args()
    print(
        "us of CPU, median. step: of the decode worker; plan: snapshot and policy after a step; arrival: of a request;"
    )
    print("prefill: a batch is answered. Each until its messages are with the sockets.")
    print(f"{'policy':>10} {'running':>7} {'waiting':>7}" + "".join(f"{event:>9}" for event in EVENTS))
    for policy, running, waiting in product(given.policies, given.running, given.waiting):
        profile = cProfile.Profile() if given.profile else None
        found = measured(policy, running, waiting, given.rounds, profile)
        print(f"{policy:>10} {running:>7} {waiting:>7}" + "".join(f"{found[event]:>9.0f}" for event in EVENTS))
        if profile is not None:
            pstats.Stats(profile).sort_stats("tottime").print_stats(25)


if __name__ == "__main__":
    main()
