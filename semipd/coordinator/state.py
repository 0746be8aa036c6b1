"""What the coordinator's desks share: the requests, the account, the transport, and what was observed."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from typing import Protocol

from semipd.coordinator.metrics import Metrics
from semipd.coordinator.observations import Observations
from semipd.coordinator.quarantine import PageQuarantine
from semipd.coordinator.requests import RequestEntry, RequestTable, SequenceState, Stage, Ticket
from semipd.core.clock import Clock
from semipd.core.config import ServerConfig
from semipd.core.errors import RequestError
from semipd.core.partition import FULL, Mode, Shares
from semipd.core.request import Delta
from semipd.internal.v1 import gateway_pb2 as gw
from semipd.internal.v1 import worker_pb2 as wk
from semipd.memory.account import Holder, PageAccount, Role
from semipd.memory.control import ControlBlock
from semipd.memory.errors import StaleLease
from semipd.wire.codec import failure_to_wire


class Transport(Protocol):
    """Takes messages and never blocks. What can't be delivered is lost: its addressee is dead, which is heard of."""

    def to_gateway(self, gateway: bytes, message: gw.ToGateway) -> None: ...

    def delta(self, ticket: Ticket, delta: Delta) -> None:
        """Goes out with the others of its gateway that came of the same messages."""

    def token(self, ticket: Ticket, index: int, position: int, token: int) -> None:
        """The delta that nearly all are: one token of the sample `index`, and nothing else."""

    def to_worker(self, incarnation: int, message: wk.ToWorker) -> None: ...


@dataclass(slots=True)
class Worker:
    """A process that has, or is about to have, one of the two roles."""

    role: Role
    incarnation: int
    ready: bool = False
    pulses: int = 0
    progress_s: float = 0.0
    """When it last showed progress, or got work after having none."""
    appointed_s: float = 0.0
    step_rows: tuple[int, ...] = ()
    """Sizes that its decode steps are padded to, as it says when it is ready."""
    percentage: int | None = None
    """Partition back end `mps`: of the multiprocessors, for life."""
    leaving_s: float | None = None
    """Since when its successor is ready and it gets no more work; None: it gets work."""

    @property
    def holder(self) -> Holder:
        return Holder(self.role, self.incarnation)


@dataclass(slots=True)
class CoordinatorState:
    config: ServerConfig
    clock: Clock
    transport: Transport
    requests: RequestTable
    metrics: Metrics
    observations: Observations = field(default_factory=Observations)
    account: PageAccount | None = None
    """None until the resident is ready."""
    control: ControlBlock | None = None
    """With the account."""
    quarantine: PageQuarantine = field(default_factory=PageQuarantine)
    workers: dict[Role, Worker] = field(default_factory=dict)
    shares: Shares = FULL
    """As granted."""
    mode: Mode = Mode.SPLIT
    draining: bool = False

    @property
    def pages(self) -> PageAccount:
        """The account, where the caller knows that there is one."""
        if self.account is None:
            raise RuntimeError("the resident is not ready")
        return self.account

    @property
    def on_gpu(self) -> bool:
        return self.config.device == "cuda"

    def ready_worker(self, role: Role) -> Worker | None:
        """That can be given work."""
        worker = self.workers.get(role)
        return worker if worker is not None and worker.ready and worker.leaving_s is None else None

    def gap(self, now: float, seconds: float, sequences: int = 1) -> None:
        """So long was it between two tokens of so many sequences."""
        self.observations.gap(now, seconds, sequences)
        self.metrics.itl.observe(seconds, sequences)

    def release(self, lease: int) -> None:
        """Frees the pages whoever holds them. Only for leases that no worker computes on."""
        holder = self.pages.holder(lease)
        if holder is not None:
            # The decode worker may be about it at this moment: it was told to drop a prompt that it had answered for.
            with contextlib.suppress(StaleLease):
                self.pages.release(lease, holder, quarantine=self.quarantine.about(lease))

    def retire(self, sequence: SequenceState) -> None:
        """Sees to the pages of a sequence that is about to be closed, as its stage demands."""
        lease = sequence.lease
        if lease is None:
            return
        worker = self.workers.get(self._computing(sequence, lease))
        if sequence.stage in (Stage.PREFILLING, Stage.DECODING) and worker is not None:
            # It may be computing on them: it releases them itself (decode), or its answer lets us (prompts).
            self.transport.to_worker(worker.incarnation, wk.ToWorker(drop=wk.Drop(leases=[lease])))
        else:
            self.release(lease)

    def _computing(self, sequence: SequenceState, lease: int) -> Role:
        """In mixed batches prompts are with the decode worker, and whoever computes holds the lease."""
        if sequence.stage is not Stage.PREFILLING:
            return Role.DECODE
        holder = self.pages.holder(lease)
        return Role.DECODE if holder is not None and holder.role is Role.DECODE else Role.PREFILL

    def end(self, entry: RequestEntry, error: RequestError) -> None:
        """Ends a request with an error: its pages, its place in the requests, its client."""
        for sequence in entry.live.values():
            self.retire(sequence)
        self.requests.forget(entry)
        self.metrics.ended(error.reason)
        self.refuse(entry.ticket, error)

    def refuse(self, ticket: Ticket, error: RequestError) -> None:
        """Tells a gateway that the request is over, or never began."""
        ended = gw.Ended(ticket=ticket.number, failure=failure_to_wire(error))
        self.transport.to_gateway(ticket.gateway, gw.ToGateway(ended=ended))
