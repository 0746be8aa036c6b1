"""A coordinator on a stage: the test plays gateways and workers, and holds the clock."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from semipd.coordinator.coordinator import Coordinator
from semipd.coordinator.metrics import Metrics
from semipd.coordinator.partition import PartitionController
from semipd.coordinator.policy_host import PolicyHost
from semipd.coordinator.requests import RequestTable, Ticket
from semipd.coordinator.state import CoordinatorState, Worker
from semipd.core.clock import ManualClock
from semipd.core.config import ServerConfig, pages_for, resolve
from semipd.core.request import Delta, Request, SamplingParams, StoppingParams
from semipd.internal.v1 import gateway_pb2 as gw
from semipd.internal.v1 import sequence_pb2 as seq
from semipd.internal.v1 import worker_pb2 as wk
from semipd.memory.account import PageAccount, Role
from semipd.memory.control import CONTROL_BYTES, ControlBlock
from semipd.policies.builtin.fcfs import Fcfs
from semipd.policies.contract import Policy
from semipd.wire.codec import request_to_wire

GATEWAY = b"gateway.0"


class Letters:
    """A Transport that keeps the messages that are sent."""

    def __init__(self) -> None:
        self.gateway: list[gw.ToGateway] = []
        self.deltas: defaultdict[int, list[Delta]] = defaultdict(list)
        self.worker: defaultdict[int, list[wk.ToWorker]] = defaultdict(list)

    def to_gateway(self, gateway: bytes, message: gw.ToGateway) -> None:
        self.gateway.append(message)

    def delta(self, ticket: Ticket, delta: Delta) -> None:
        self.deltas[ticket.number].append(delta)

    def token(self, ticket: Ticket, index: int, position: int, token: int) -> None:
        self.delta(ticket, Delta(index, position, (token,)))

    def to_worker(self, incarnation: int, message: wk.ToWorker) -> None:
        self.worker[incarnation].append(message)


class Stage:
    """A coordinator with a prefill worker 1 and a decode worker 2, both ready. With `partition` green or mps it is on a
    GPU of `sms` multiprocessors."""

    def __init__(
        self,
        pages: int = 64,
        policy: Policy | None = None,
        cpus: int = 1,
        partition: str = "",
        sms: int = 132,
        **config: Any,
    ) -> None:
        self.clock = ManualClock(100.0)
        self.transport = Letters()
        partition = partition or ("cores" if cpus > 1 else "none")
        asked = ServerConfig(partition=partition, **config)
        settings = resolve(asked, "cuda" if partition in ("green", "mps") else "cpu")
        account = PageAccount.create(memoryview(bytearray(PageAccount.bytes_needed(pages, 80))), pages, 80)
        self.state = CoordinatorState(
            settings, self.clock, self.transport, RequestTable(settings.max_waiting), Metrics(), account=account
        )
        self.new_control()
        self.failures: list[tuple[str, str]] = []
        host = PolicyHost(policy or Fcfs(), 0.05, lambda name, why: self.failures.append((name, why)))
        self.partition = PartitionController(self.state, list(range(cpus)))
        if sms:
            self.partition.device_known(sms)
        self.coordinator = Coordinator(self.state, host, self.partition, "tiny", list)
        self.account = account
        self.pages = pages
        self._incarnation = 0
        self.prefill = self.assign(Role.PREFILL)
        self.decode = self.assign(Role.DECODE)

    def new_control(self) -> None:
        self.control = ControlBlock(memoryview(bytearray(CONTROL_BYTES)))
        self.state.control = self.control

    def assign(self, role: Role) -> Worker:
        self._incarnation += 1
        now = self.clock.now()
        percentage = self.partition.percentage(role)
        worker = Worker(role, self._incarnation, True, progress_s=now, assigned_s=now, percentage=percentage)
        self.state.workers[role] = worker
        return worker

    def die(self, worker: Worker, *, killed: bool = True) -> None:
        del self.state.workers[worker.role]
        self.coordinator.on_worker_lost(worker, killed=killed)

    # --- the gateway's part -----------------------------------------------------------------------------------------

    def submit(self, ticket: int, prompt: int = 20, max_tokens: int = 4, **request: Any) -> None:
        made = Request(
            request_id=f"r{ticket}",
            prompt=tuple(range(1, prompt + 1)),
            sampling=SamplingParams(temperature=0.0),
            stopping=StoppingParams(max_tokens),
            **request,
        )
        self.coordinator.on_gateway_message(GATEWAY, gw.FromGateway(submit=request_to_wire(ticket, made)))
        self.coordinator.act()

    def gateway_says(self, message: gw.FromGateway) -> None:
        self.coordinator.on_gateway_message(GATEWAY, message)
        self.coordinator.act()

    def told(self, kind: str) -> list[Any]:
        """Returns what the gateway was told by messages of that kind."""
        return [getattr(m, kind) for m in self.transport.gateway if m.WhichOneof("message") == kind]

    def reasons(self) -> dict[int, str]:
        """Returns why requests ended without (further) tokens, by ticket."""
        return {m.ended.ticket: m.ended.failure.reason for m in self.transport.gateway if m.HasField("ended")}

    def tokens(self, ticket: int, index: int = 0) -> list[int]:
        """Returns the tokens that the client has. Asserts that there is no gap and no duplicate."""
        got: list[int] = []
        for delta in self.transport.deltas[ticket]:
            if delta.index == index:
                assert delta.position == len(got), "a gap or a duplicate reached the client"
                got.extend(delta.tokens)
        return got

    # --- the workers' part ------------------------------------------------------------------------------------------

    def batches(self, worker: Worker | None = None) -> list[wk.PrefillBatch]:
        """Takes the batches that were sent to the present prefill worker, or to `worker`."""
        incarnation = (worker or self.prefill).incarnation
        inbox = self.transport.worker[incarnation]
        found = [m.prefill for m in inbox if m.HasField("prefill")]
        self.transport.worker[incarnation] = [m for m in inbox if not m.HasField("prefill")]
        return found

    def adopts(self) -> list[wk.Adopt]:
        inbox = self.transport.worker[self.decode.incarnation]
        found = [m.adopt for m in inbox if m.HasField("adopt")]
        self.transport.worker[self.decode.incarnation] = [m for m in inbox if not m.HasField("adopt")]
        return found

    def told_shares(self) -> list[wk.SetShares]:
        """Returns the shares that the workers were told, prefill first."""
        inboxes = (self.transport.worker[w.incarnation] for w in (self.prefill, self.decode))
        return [m.set_shares for inbox in inboxes for m in inbox if m.HasField("set_shares")]

    def drops(self, worker: Worker) -> list[int]:
        return [
            lease for m in self.transport.worker[worker.incarnation] if m.HasField("drop") for lease in m.drop.leases
        ]

    def prefill_batch(self, batch: wk.PrefillBatch, token: int = 7, worker: Worker | None = None) -> None:
        """Plays the prefill worker, or `worker`: takes pages and answers that all was computed. The first token is
        `token`."""
        worker = worker or self.prefill
        answers = []
        for chunk in batch.chunks:
            end = chunk.start + len(chunk.tokens)
            have = len(self.account.table(chunk.lease))
            self.account.take(chunk.lease, pages_for(end) - have, worker.holder)
            answer = wk.ChunkDone(lease=chunk.lease, outcome=wk.CHUNK_OUTCOME_COMPUTED, computed=end)
            if chunk.HasField("continuation"):
                answer.sampled.token = token
                answer.sampled.position = len(chunk.continuation.output)
            answers.append(answer)
        self.prefill_says(wk.PrefillDone(batch=batch.batch, chunks=answers, seconds=0.01), worker)

    def prefill_says(self, done: wk.PrefillDone, worker: Worker | None = None) -> None:
        self.coordinator.on_worker_message(worker or self.prefill, wk.FromWorker(prefill_done=done))
        self.coordinator.act()

    def prefill_all(self) -> None:
        for batch in self.batches():
            self.prefill_batch(batch)

    def step(self, rows: Iterable[tuple[int, int, int]], ends: Iterable[int] = ()) -> None:
        """Plays the decode worker. A row is (lease, position, token). Leases in `ends` end by length, and are
        released."""
        done = wk.StepDone(seconds=0.005)
        for row, (lease, position, token) in enumerate(rows):
            done.leases.append(lease)
            done.positions.append(position)
            done.tokens.append(token)
            if lease in ends:
                done.ends.append(wk.RowEnd(row=row, end=seq.End(reason=seq.END_REASON_LENGTH)))
                self.account.release(lease, self.decode.holder)
        self.decode_says(done)

    def decode_says(self, done: wk.StepDone) -> None:
        self.coordinator.on_worker_message(self.decode, wk.FromWorker(step_done=done))
        self.coordinator.act()

    def running(self, ticket: int, **request: Any) -> int:
        """Submits a request, brings it into the decode batch with its first token, 7, and returns its lease."""
        self.submit(ticket, **request)
        self.prefill_all()
        (adopt,) = self.adopts()
        return adopt.lease

    def all_pages_are_free(self) -> bool:
        self.account.check()
        return self.account.counts().free == self.pages
