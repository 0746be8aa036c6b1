"""The tick: hear everybody, plan, hand out, tell everybody. The work itself is in the desks."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import structlog

from semipd.coordinator.admin import AdminController, Roll
from semipd.coordinator.admission import AdmissionController
from semipd.coordinator.decode_dispatch import DecodeDispatcher, relieve
from semipd.coordinator.partition import PartitionController
from semipd.coordinator.policy_host import PolicyHost
from semipd.coordinator.prefill_dispatch import PrefillDispatcher
from semipd.coordinator.recovery import worker_died, worker_retired
from semipd.coordinator.requests import SequenceState, Stage
from semipd.coordinator.state import CoordinatorState, Worker
from semipd.core.config import PAGE_SIZE, REVIEW_S
from semipd.core.errors import Reason, Unavailable
from semipd.core.plan import Plan
from semipd.core.snapshot import Limits, PageUse, Running, Snapshot, WaitingSequence
from semipd.internal.v1 import gateway_pb2 as gw
from semipd.internal.v1 import worker_pb2 as wk
from semipd.memory.account import PageAccount, Role

log = structlog.get_logger()

GAUGES_S = 0.5


class Coordinator:
    """Everything that the coordinator does, but for sockets and processes; so tests drive it with messages alone."""

    def __init__(
        self, state: CoordinatorState, host: PolicyHost, partition: PartitionController, model: str, roll: Roll
    ) -> None:
        self.state = state
        self.host = host
        self.partition = partition
        self.front = AdmissionController(state, host, self.snapshot)
        self.prefill = PrefillDispatcher(state)
        self.decode = DecodeDispatcher(state)
        self.admin = AdminController(state, host, partition, model, roll)
        self._limits = Limits(state.config.max_batch_tokens, state.config.max_running, partition.modes)
        self._reviewed_s = 0.0
        self._gauges_s = 0.0
        self._told_state: gw.ServerState | None = None
        self._gateways: set[bytes] = set()

    # --- hearing ----------------------------------------------------------------------------------------------------

    def hear_gateway(self, gateway: bytes, message: gw.FromGateway) -> None:
        match message.WhichOneof("message"):
            case "submit":
                self.front.submit(gateway, message.submit)
            case "cancel":
                self.front.cancel(gateway, message.cancel)
            case "stop_matched":
                self.front.stop_matched(gateway, message.stop_matched)
            case "ask":
                self.admin.ask(gateway, message.ask)
            case "door_refusal":
                self.state.metrics.refused(message.door_refusal.reason)
            case "hello":
                self._gateways.add(gateway)
                if self._told_state is not None:
                    self.state.transport.to_gateway(gateway, gw.ToGateway(state=self._told_state))

    def hear_worker(self, worker: Worker, message: wk.FromWorker) -> None:
        """From a worker in office, or its successor; what a fenced one sends never comes here."""
        kind = message.WhichOneof("message")
        if self.state.account is None and kind in ("prefill_done", "step_done", "heartbeat"):
            return  # of a worker that doesn't know yet that the resident is gone
        match kind:
            case "prefill_done":
                worker.progress_s = self.state.clock.now()
                self.prefill.done(worker, message.prefill_done)
            case "step_done" if worker.role is Role.DECODE:
                worker.progress_s = self.state.clock.now()
                self.decode.step(message.step_done)
            case "heartbeat":
                self._heartbeat(worker, message.heartbeat)
            case "failed":
                log.error("worker failed", role=worker.role.name.lower(), error=message.failed.error)
            case "shares_applied":
                self.partition.applied(worker.role, message.shares_applied)

    def _heartbeat(self, worker: Worker, beat: wk.Heartbeat) -> None:
        if beat.pulses != worker.pulses:
            worker.pulses = beat.pulses
            worker.progress_s = self.state.clock.now()
        if self.state.workers.get(worker.role) is not worker:
            return  # a successor, which holds nothing yet
        if worker.role is Role.DECODE:
            if worker.leaving_s is not None:
                return  # it hands its leases over, and will say when it has
            self.decode.reconcile(frozenset(beat.leases), beat.adopted_through)
        self.prefill.reconcile(worker, beat.answered_through, beat.idle)

    # --- what happens to processes ----------------------------------------------------------------------------------

    def worker_lost(self, worker: Worker, *, killed: bool) -> None:
        worker_died(self.state, worker, self.prefill, self.decode, killed=killed)

    def worker_retired(self, worker: Worker) -> None:
        worker_retired(self.state, worker, self.prefill, self.decode)

    def workers_beyond_recovery(self) -> None:
        self._end_all(Unavailable("no worker can be started", retry_after_s=5.0))

    def gateway_lost(self, gateway: bytes) -> None:
        self._gateways.discard(gateway)
        self.front.gateway_lost(gateway)

    def resident_lost(self) -> None:
        why = "the process that holds the model was lost"
        self.tell_state(serving=False, reason=why)  # first: who hears of the loss and asks must not be told "serving"
        self._end_all(Unavailable(why, retry_after_s=5.0))
        self.prefill.forget()

    def end_all_for_shutdown(self) -> None:
        self._end_all(Unavailable("the server is shutting down", reason=Reason.DRAINING))

    def _end_all(self, error: Unavailable) -> None:
        for entry in self.state.requests.entries():
            self.state.end(entry, error)

    # --- acting -----------------------------------------------------------------------------------------------------

    def act(self) -> None:
        """Once a tick, after all has been heard."""
        self.front.expire()
        if self.state.account is not None:
            self._settle_doubts(self.state.account)
            self._plan()
            self.decode.admit()
            self._unjam()
        self.admin.look_at_drains()
        self._gauge()

    def _settle_doubts(self, account: PageAccount) -> None:
        ready = [w.appointed_s for w in self.state.workers.values() if w.ready]
        self.state.quarantine.settle(account, self.state.clock.now(), max(ready, default=None))

    def _plan(self) -> None:
        """Asks the policy where its answer can matter: work can be given out, or it is time for a review."""
        now = self.state.clock.now()
        waiting = self.prefill.has_room(self.state.mode) and any(
            True for _ in self.state.requests.sequences(Stage.WAITING)
        )
        if not waiting and (not len(self.state.requests) or now < self._reviewed_s + REVIEW_S):
            return
        self._reviewed_s = now
        plan = self.host.plan(self.snapshot())
        self._follow(plan)

    def _follow(self, plan: Plan) -> None:
        self.partition.change_mode(plan.mode, plan.step_tokens)
        if plan.shares is not None:
            self.partition.wish(plan.shares)
        self.decode.limit = plan.decode_limit or self.state.config.max_running
        if plan.prefill and self.prefill.has_room(plan.mode):
            self.prefill.give_out(plan.prefill, plan.mode, plan.step_tokens)

    def _unjam(self) -> None:
        """All pages are with prompts that are half computed, and none can go on: the youngest gives way."""
        requests = self.state.requests
        stuck = (
            self.state.pages.free_pages == 0
            and self.prefill.batches == 0
            and requests.count(Stage.WAITING) > 1
            and requests.count(Stage.READY, Stage.DECODING) == 0
        )
        if stuck:
            relieve(self.state)

    def snapshot(self) -> Snapshot:
        state = self.state
        waiting: list[WaitingSequence] = []
        rows: list[tuple[SequenceState, int, float]] = []
        for sequence in state.requests.all_sequences():
            if sequence.stage is Stage.WAITING or sequence.stage is Stage.PREFILLING:
                waiting.append(sequence.as_waiting())
            else:
                rows.append((sequence, len(sequence.output), sequence.last_token_s))
        running = Running(len(rows), lambda: [s.as_running(count, last_s) for s, count, last_s in rows])
        counts = state.account.counts() if state.account else None
        return Snapshot(
            now_s=state.clock.now(),
            waiting=tuple(waiting),
            running=running,
            pages=PageUse(counts.free if counts else 0, counts.total if counts else 0, PAGE_SIZE),
            limits=self._known_limits(),
            shares=state.shares,
            mode=state.mode,
            prefill_batches=self.prefill.batches,
            observed=state.observations.observed(),
        )

    def _known_limits(self) -> Limits:
        """What the decode worker has said of itself stays known while another takes its place."""
        decode = self.state.ready_worker(Role.DECODE)
        if decode is not None and decode.step_rows != self._limits.step_rows:
            self._limits = replace(self._limits, step_rows=decode.step_rows)
        return self._limits

    # --- telling ----------------------------------------------------------------------------------------------------

    def tell_state(self, *, serving: bool, reason: str) -> None:
        """Tells the gateways, where it is news."""
        state = gw.ServerState(serving=serving, draining=self.state.draining, reason=reason)
        if state != self._told_state:
            log.info("serving" if serving else "not serving", reason=reason)
            self._told_state = state
            for gateway in self._gateways:
                self.state.transport.to_gateway(gateway, gw.ToGateway(state=state))

    def _gauge(self) -> None:
        now = self.state.clock.now()
        if now < self._gauges_s + GAUGES_S:
            return
        self._gauges_s = now
        metrics, requests, account = self.state.metrics, self.state.requests, self.state.account
        counts = account.counts() if account else None
        metrics.waiting.set(requests.count(Stage.WAITING, Stage.PREFILLING))
        metrics.running.set(requests.count(Stage.READY, Stage.DECODING))
        metrics.page_use.set(1 - counts.free / counts.total if counts else 0)
        attainment = self.state.observations.attainment(now)
        if attainment is not None:
            metrics.attainment.set(attainment)

    def has_work(self, role: Role) -> bool:
        if self.prefill.batches_with(role):
            return True
        return role is Role.DECODE and any(True for _ in self.state.requests.sequences(Stage.DECODING))

    def next_moment(self) -> Iterable[float]:
        """Moments at which `act` has something to do even if nobody says anything."""
        moment = self.front.next_moment()
        if moment is not None:
            yield moment
        if len(self.state.requests):
            yield self._reviewed_s + REVIEW_S
