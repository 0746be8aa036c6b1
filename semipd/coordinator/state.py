"""The coordinator's state, and the one place where a sequence ends or loses its pages.

The dispatchers, the supervisor and the administration share this state. Messages go out through its transport.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from typing import Protocol

import structlog

from semipd.coordinator.metrics import Metrics
from semipd.coordinator.observations import Observations
from semipd.coordinator.quarantine import PageQuarantine
from semipd.coordinator.requests import RequestEntry, RequestTable, SequenceState, Stage, Ticket
from semipd.core.clock import Clock
from semipd.core.config import ServerConfig
from semipd.core.errors import RequestError
from semipd.core.latency import NOMINAL, LatencyModel
from semipd.core.partition import FULL, Mode, Shares
from semipd.core.request import Delta, End, mean_tpot_s
from semipd.core.snapshot import Completion
from semipd.internal.v1 import gateway_pb2 as gw
from semipd.internal.v1 import worker_pb2 as wk
from semipd.memory.account import Holder, PageAccount, Role
from semipd.memory.control import ControlBlock
from semipd.memory.errors import StaleLease
from semipd.wire.codec import failure_to_wire

log = structlog.get_logger()


class Transport(Protocol):
    """Sends messages and never blocks. A message that can't be delivered is lost: its receiver is dead, and the
    supervisor notices that."""

    def to_gateway(self, gateway: bytes, message: gw.ToGateway) -> None: ...

    def delta(self, ticket: Ticket, delta: Delta) -> None:
        """Sends a delta. It travels with the other deltas for its gateway that the same worker messages caused."""

    def token(self, ticket: Ticket, index: int, position: int, token: int) -> None:
        """Sends the most common delta: one token of the sample `index`, and nothing else."""

    def to_worker(self, incarnation: int, message: wk.ToWorker) -> None: ...


@dataclass(slots=True)
class Worker:
    """A process that has one of the two worker roles, or is starting in it."""

    role: Role
    incarnation: int
    ready: bool = False
    pulses: int = 0
    progress_s: float = 0.0
    """The time at which the worker last showed progress, or got work after it had none."""
    assigned_s: float = 0.0
    decode_capture_sizes: tuple[int, ...] = ()
    """Sizes that its decode steps are padded to, as its Ready message names them."""
    percentage: int | None = None
    """Partition back end `mps`: percent of the multiprocessors, for the life of the process. None: another back end."""
    draining_s: float | None = None
    """The time since when its successor is ready and it gets no more work. None: it gets work."""

    @property
    def holder(self) -> Holder:
        return Holder(self.role, self.incarnation)


@dataclass(slots=True)
class CoordinatorState:
    """The state that the parts of the coordinator share.

    The methods below are the only code that ends a sequence or takes its pages away.
    """

    config: ServerConfig
    clock: Clock
    transport: Transport
    requests: RequestTable
    metrics: Metrics
    latency: LatencyModel = NOMINAL
    """The latency model that policies begin with."""
    observations: Observations = field(default_factory=Observations)
    account: PageAccount | None = None
    """The page account. None until the resident is ready."""
    control: ControlBlock | None = None
    """The control block. It is there whenever the account is."""
    quarantine: PageQuarantine = field(default_factory=PageQuarantine)
    workers: dict[Role, Worker] = field(default_factory=dict)
    """The current worker of each role; a successor that is still starting is not in here."""
    shares: Shares = FULL
    """The shares as they are granted."""
    mode: Mode = Mode.SPLIT
    draining: bool = False
    """True while the server refuses new requests because it is shutting down."""

    @property
    def pages(self) -> PageAccount:
        """The page account, for callers that know that it is there. Raises RuntimeError where it is not."""
        if self.account is None:
            raise RuntimeError("the resident is not ready")
        return self.account

    @property
    def on_gpu(self) -> bool:
        return self.config.device == "cuda"

    def ready_worker(self, role: Role) -> Worker | None:
        """Returns the worker of that role if it can be given work; else None."""
        worker = self.workers.get(role)
        return worker if worker is not None and worker.ready and worker.draining_s is None else None

    # --- how sequences and requests end -----------------------------------------------------------------------------

    def finish(self, sequence: SequenceState, end: End) -> None:
        """Closes a sequence that completed, and records how it went.

        The caller has told the client, and has released the pages or made the worker release them.
        """
        now, entry = self.clock.now(), sequence.entry
        timings, count = sequence.timings(), len(sequence.output)
        tpot = mean_tpot_s(timings.decode_s, count)
        self.observations.completion(Completion(now, tpot, count, entry.request.slo), timings.ttft_s)
        self.metrics.finished(end.reason.value, now - entry.arrival_s)
        log.info(
            "finished",
            request_id=entry.request.request_id,
            index=sequence.index,
            reason=end.reason.value,
            output_tokens=count,
            ttft_s=round(timings.ttft_s, 4),
            tpot_s=None if tpot is None else round(tpot, 5),
        )
        self.requests.close(sequence)

    def fail(self, entry: RequestEntry, error: RequestError) -> None:
        """Ends a request with an error: takes its pages away, removes it from the table and tells its client."""
        for sequence in entry.live.values():
            self.retire(sequence)
        self.requests.forget(entry)
        self.metrics.ended(error.reason)
        self.refuse(entry.ticket, error)

    def refuse(self, ticket: Ticket, error: RequestError) -> None:
        """Tells a gateway that a request is over, or was not accepted."""
        ended = gw.Ended(ticket=ticket.number, failure=failure_to_wire(error))
        self.transport.to_gateway(ticket.gateway, gw.ToGateway(ended=ended))

    # --- how sequences lose their pages -----------------------------------------------------------------------------

    def retire(self, sequence: SequenceState) -> None:
        """Takes away the pages of a sequence, in the way that its stage demands.

        A worker that may be computing on the pages is told to drop the lease. The decode worker then releases the pages
        itself; for the chunk of a prompt, the worker's answer makes `on_prefill_done` release them. Otherwise the pages
        are released here. The caller closes the sequence or starts it over.
        """
        lease = sequence.lease
        if lease is None:
            return
        worker = self.workers.get(self._computing_role(sequence, lease))
        if sequence.stage in (Stage.PREFILLING, Stage.DECODING) and worker is not None:
            self.transport.to_worker(worker.incarnation, wk.ToWorker(drop=wk.Drop(leases=[lease])))
        else:
            self.release(lease)

    def _computing_role(self, sequence: SequenceState, lease: int) -> Role:
        """Returns the role of the worker that computes on the sequence. In mixed batches the decode worker computes
        prompts too; the worker that computes a prompt holds its lease."""
        if sequence.stage is not Stage.PREFILLING:
            return Role.DECODE
        holder = self.pages.holder(lease)
        return Role.DECODE if holder is not None and holder.role is Role.DECODE else Role.PREFILL

    def release(self, lease: int) -> None:
        """Releases the pages of a lease, whichever process holds it. No worker may be computing on them."""
        holder = self.pages.holder(lease)
        if holder is not None:
            # The decode worker may release it at this moment, if it was told to drop a prompt that it had answered.
            with contextlib.suppress(StaleLease):
                self.pages.release(lease, holder, quarantine=self.quarantine.about(lease))

    def preempt(self, sequence: SequenceState) -> None:
        """Takes the pages of a sequence away, to compute it again later from its prompt and its journal."""
        self.retire(sequence)
        self.count_preemption(sequence)
        self.requests.start_over(sequence)

    def count_preemption(self, sequence: SequenceState) -> None:
        sequence.preemptions += 1
        self.metrics.preemptions.inc()

    def relieve(self) -> bool:
        """Frees pages when nothing can go on without them: preempts the least important sequence that holds pages and
        is with no worker. That is the one of the lowest priority, and among these the youngest. Returns False if there
        is none."""
        for sequence in sorted(
            self.requests.sequences(Stage.WAITING, Stage.READY), key=lambda s: (s.entry.request.priority, -s.number)
        ):
            if sequence.lease is not None and len(self.pages.table(sequence.lease)):
                self.preempt(sequence)
                return True
        return False

    # --- what is observed -------------------------------------------------------------------------------------------

    def record_gap(self, now: float, seconds: float, sequences: int = 1) -> None:
        """Records the time between two tokens, for as many sequences as had the same time between them."""
        self.observations.gap(now, seconds, sequences)
        self.metrics.itl.observe(seconds, sequences)
