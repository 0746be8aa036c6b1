"""The coordinator's tick: apply messages, plan, send work, tell the gateways. The dispatchers do the work itself."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import structlog

from semipd.coordinator.admin import AdminController, ListProcesses
from semipd.coordinator.admission import AdmissionController
from semipd.coordinator.decode_dispatch import DecodeDispatcher
from semipd.coordinator.partition import PartitionController
from semipd.coordinator.policy_host import PolicyHost
from semipd.coordinator.prefill_dispatch import PrefillDispatcher
from semipd.coordinator.recovery import on_worker_died, on_worker_drained
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
"""Seconds between two updates of the gauges."""


class Coordinator:
    """Everything that the coordinator does, except sockets and processes. So tests drive it with messages alone."""

    def __init__(
        self,
        state: CoordinatorState,
        host: PolicyHost,
        partition: PartitionController,
        model: str,
        processes: ListProcesses,
    ) -> None:
        """`model` is the name under which the model is served."""
        self.state = state
        self.host = host
        self.partition = partition
        self.admission = AdmissionController(state, host, self.snapshot)
        self.prefill = PrefillDispatcher(state)
        self.decode = DecodeDispatcher(state)
        self.admin = AdminController(state, host, partition, model, processes)
        self._limits = Limits(
            state.config.max_batch_tokens,
            state.config.max_running,
            partition.modes,
            latency=state.latency,
            splits=partition.splits,
            sms=partition.sms,
        )
        self._reviewed_s = 0.0
        self._gauges_s = 0.0
        self._told_state: gw.ServerState | None = None
        self._gateways: set[bytes] = set()

    # --- messages ---------------------------------------------------------------------------------------------------

    def on_gateway_message(self, gateway: bytes, message: gw.FromGateway) -> None:
        """Applies a message of a gateway."""
        match message.WhichOneof("message"):
            case "submit":
                self.admission.on_submit(gateway, message.submit)
            case "cancel":
                self.admission.on_cancel(gateway, message.cancel)
            case "stop_matched":
                self.admission.on_stop_matched(gateway, message.stop_matched)
            case "ask":
                self.admin.on_ask(gateway, message.ask)
            case "door_refusal":
                self.state.metrics.refused(message.door_refusal.reason)
            case "hello":
                self._gateways.add(gateway)
                if self._told_state is not None:
                    self.state.transport.to_gateway(gateway, gw.ToGateway(state=self._told_state))

    def on_worker_message(self, worker: Worker, message: wk.FromWorker) -> None:
        """Applies a message of the current worker, or of its successor. The worker pool refuses messages of all
        others."""
        kind = message.WhichOneof("message")
        if self.state.account is None and kind in ("prefill_done", "step_done", "heartbeat"):
            return  # the worker does not know yet that the resident is gone
        match kind:
            case "prefill_done":
                worker.progress_s = self.state.clock.now()
                self.prefill.on_prefill_done(worker, message.prefill_done)
            case "step_done" if worker.role is Role.DECODE:
                worker.progress_s = self.state.clock.now()
                self.decode.on_step_done(message.step_done)
            case "heartbeat":
                self._on_heartbeat(worker, message.heartbeat)
            case "failed":
                log.error("worker failed", role=worker.role.name.lower(), error=message.failed.error)
            case "shares_applied":
                self.partition.on_shares_applied(worker.role, message.shares_applied)

    def _on_heartbeat(self, worker: Worker, beat: wk.Heartbeat) -> None:
        if beat.pulses != worker.pulses:
            worker.pulses = beat.pulses
            worker.progress_s = self.state.clock.now()
        if self.state.workers.get(worker.role) is not worker:
            return  # a successor, which holds nothing yet
        if worker.role is Role.DECODE:
            if worker.draining_s is not None:
                return  # it hands its leases over, and will say when it has done so
            self.decode.on_heartbeat(frozenset(beat.leases), beat.adopted_through, frozenset(beat.held))
        self.prefill.on_heartbeat(worker, beat.answered_through, beat.idle)

    # --- what happens to processes ----------------------------------------------------------------------------------

    def on_worker_lost(self, worker: Worker, *, killed: bool) -> None:
        """Takes back what a dead worker had. `killed`: it was ended from outside."""
        on_worker_died(self.state, worker, self.prefill, self.decode, killed=killed)

    def on_worker_drained(self, worker: Worker) -> None:
        """Takes back what a worker had that has answered for everything and makes room for its successor."""
        on_worker_drained(self.state, worker, self.prefill, self.decode)

    def on_workers_beyond_recovery(self) -> None:
        """Ends all requests: nobody can compute them."""
        self._fail_all(Unavailable("no worker can be started", retry_after_s=5.0))

    def on_gateway_lost(self, gateway: bytes) -> None:
        """Ends the requests of a gateway that has died."""
        self._gateways.discard(gateway)
        self.admission.on_gateway_lost(gateway)

    def on_resident_lost(self) -> None:
        """Ends all requests: their KV is gone with the resident."""
        why = "the process that holds the model was lost"
        # First, so that a client that hears of the loss and asks for the state is not told "serving".
        self.tell_state(serving=False, reason=why)
        self._fail_all(Unavailable(why, retry_after_s=5.0))
        self.prefill.forget()

    def end_all_for_shutdown(self) -> None:
        """Ends all requests that are left when the server ends."""
        self._fail_all(Unavailable("the server is shutting down", reason=Reason.DRAINING))

    def _fail_all(self, error: Unavailable) -> None:
        for entry in self.state.requests.entries():
            self.state.fail(entry, error)

    # --- acting -----------------------------------------------------------------------------------------------------

    def act(self) -> None:
        """Does what the tick's messages make possible. To be called once a tick, after all messages were applied."""
        self.admission.expire()
        if self.state.account is not None:
            self._settle_quarantine(self.state.account)
            self._plan()
            self.decode.update_held()
            self.decode.hand_over_ready()
            self._resolve_deadlock()
        self.admin.answer_drains()
        self._update_gauges()

    def _settle_quarantine(self, account: PageAccount) -> None:
        ready = [w.assigned_s for w in self.state.workers.values() if w.ready]
        self.state.quarantine.settle(account, self.state.clock.now(), max(ready, default=None))

    def _plan(self) -> None:
        """Asks the policy where its answer can matter: work can be sent, or it is time for a review."""
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
        self.decode.preempt(plan.preempt)
        self.decode.hold(plan.hold)
        self.partition.change_mode(plan.mode, plan.step_tokens)
        if plan.shares is not None:
            self.partition.request(plan.shares)
        self.decode.limit = plan.decode_limit or self.state.config.max_running
        if plan.prefill and self.prefill.has_room(plan.mode):
            self.prefill.send(plan.prefill, plan.mode, plan.step_tokens)

    def _resolve_deadlock(self) -> None:
        """Preempts the youngest of half-computed prompts that hold all pages, so that none of them can go on."""
        requests = self.state.requests
        stuck = (
            self.state.pages.free_pages == 0
            and self.prefill.batches == 0
            and requests.count(Stage.WAITING) > 1
            and requests.count(Stage.READY, Stage.DECODING) == 0
        )
        if stuck:
            self.state.relieve()

    def snapshot(self) -> Snapshot:
        """Returns the state that a policy sees, as it is now."""
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
        """Returns the limits. What a decode worker said of itself stays known while another one takes its place."""
        decode, limits, partition = self.state.ready_worker(Role.DECODE), self._limits, self.partition
        if decode is not None and decode.decode_capture_sizes != limits.decode_capture_sizes:
            self._limits = replace(limits, decode_capture_sizes=decode.decode_capture_sizes)
        if partition.splits is not limits.splits or partition.sms != limits.sms:
            self._limits = replace(self._limits, splits=partition.splits, sms=partition.sms)
        return self._limits

    # --- telling ----------------------------------------------------------------------------------------------------

    def tell_state(self, *, serving: bool, reason: str) -> None:
        """Tells the gateways whether the server serves, and why not, if that has changed."""
        state = gw.ServerState(serving=serving, draining=self.state.draining, reason=reason)
        if state != self._told_state:
            log.info("serving" if serving else "not serving", reason=reason)
            self._told_state = state
            for gateway in self._gateways:
                self.state.transport.to_gateway(gateway, gw.ToGateway(state=state))

    def _update_gauges(self) -> None:
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
        """Returns whether the worker of that role has something to compute."""
        if self.prefill.batches_with(role):
            return True
        return role is Role.DECODE and self.state.requests.any_decoding()

    def next_moment(self) -> Iterable[float]:
        """Yields the moments at which `act` has something to do even if no message comes."""
        moment = self.admission.next_moment()
        if moment is not None:
            yield moment
        if len(self.state.requests):
            yield self._reviewed_s + REVIEW_S
