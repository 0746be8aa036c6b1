"""Answers what gateways ask for requests: submit, cancel, stop. Also ends requests whose deadline passes."""

from __future__ import annotations

import heapq
from collections.abc import Callable

import structlog

from semipd.coordinator.policy_host import PolicyHost
from semipd.coordinator.requests import RequestEntry, SequenceState, Stage, Ticket
from semipd.coordinator.state import CoordinatorState
from semipd.core.errors import Cancelled, DeadlineUnmeetable, Expired, Reason, RequestError, Unavailable
from semipd.core.request import Delta, End, EndReason
from semipd.core.snapshot import Snapshot
from semipd.internal.v1 import gateway_pb2 as gw
from semipd.v1 import generation_pb2 as public
from semipd.wire.codec import request_from_wire

log = structlog.get_logger()


class AdmissionController:
    """Accepts or refuses requests, and ends accepted ones when a client, an operator or a deadline says so."""

    def __init__(self, state: CoordinatorState, host: PolicyHost, snapshot: Callable[[], Snapshot]) -> None:
        """`snapshot` returns the state that the policy sees."""
        self._state = state
        self._host = host
        self._snapshot = snapshot
        self._times: list[tuple[float, int, Ticket]] = []
        """A heap of moments at which a request must be looked at; the number breaks ties."""
        self._pushed = 0

    def on_submit(self, gateway: bytes, message: gw.Submit) -> None:
        """Admits or refuses the request. The gateway gets this answer before any other message about the request."""
        state, ticket = self._state, Ticket(gateway, message.ticket)
        request = request_from_wire(message)
        try:
            self._refuse_if_closed()
            preview = state.requests.preview(request, ticket, state.clock.now())
            admission = self._host.admit(self._snapshot(), preview.as_waiting())
            if not admission.accept:
                raise DeadlineUnmeetable(
                    admission.why or "the policy refused it", retry_after_s=admission.retry_after_s
                )
            entry = state.requests.admit(request, ticket, state.clock.now())
        except RequestError as error:
            state.metrics.refused(error.reason.value)
            state.refuse(ticket, error)
            log.info("refused", request_id=request.request_id, reason=error.reason.value)
            return
        for moment in (entry.deadline_s, entry.time_limit_s):
            if moment is not None:
                self._pushed += 1
                heapq.heappush(self._times, (moment, self._pushed, ticket))
        state.transport.to_gateway(gateway, gw.ToGateway(admitted=gw.Admitted(ticket=ticket.number)))
        log.debug("admitted", request_id=request.request_id, prompt_tokens=len(request.prompt))

    def _refuse_if_closed(self) -> None:
        if self._state.draining:
            raise Unavailable("the server is shutting down", reason=Reason.DRAINING)
        if self._state.account is None:
            raise Unavailable("the model is being loaded", reason=Reason.NOT_READY, retry_after_s=1.0)

    def on_cancel(self, gateway: bytes, message: gw.Cancel) -> None:
        """Ends a request, if it is alive. Idempotent. Sends an answer where the message asks for one."""
        requests = self._state.requests
        if message.WhichOneof("target") == "ticket":
            entry = requests.find(Ticket(gateway, message.ticket))
        else:
            entry = requests.find_id(message.request_id)
        if entry is not None:
            self._state.fail(entry, _cancelled(message.cause))
            log.info("cancelled", request_id=entry.request.request_id, cause=gw.CancelCause.Name(message.cause))
        if message.HasField("ask_id"):
            outcome = public.ABORT_OUTCOME_ABORTED if entry else public.ABORT_OUTCOME_NOT_FOUND
            answer = gw.Answer(ask_id=message.ask_id, abort=public.AbortResponse(outcome=outcome))
            self._state.transport.to_gateway(gateway, gw.ToGateway(answer=answer))

    def on_gateway_lost(self, gateway: bytes) -> None:
        """Cancels the requests of a gateway that has died: its clients lost their streams with it."""
        for entry in self._state.requests.entries():
            if entry.ticket.gateway == gateway:
                self._state.fail(entry, Cancelled("the gateway is gone"))

    def on_stop_matched(self, gateway: bytes, message: gw.StopMatched) -> None:
        """Ends a sample in whose text the gateway found a stop string."""
        entry = self._state.requests.find(Ticket(gateway, message.ticket))
        sequence = entry.live.get(message.index) if entry else None
        if sequence is not None:
            self._complete(sequence, End(EndReason.STOP_STRING))

    def _complete(self, sequence: SequenceState, end: End) -> None:
        """Ends a sequence that its worker would continue. The client keeps the tokens that it has."""
        delta = Delta(sequence.index, len(sequence.output), (), (), end, sequence.timings())
        self._state.transport.delta(sequence.entry.ticket, delta)
        self._state.retire(sequence)
        self._state.finish(sequence, end)

    def expire(self) -> None:
        """Ends the requests that are past their deadline or their time limit."""
        now = self._state.clock.now()
        while self._times and self._times[0][0] <= now:
            _, _, ticket = heapq.heappop(self._times)
            entry = self._state.requests.find(ticket)
            if entry is None:
                continue
            if entry.deadline_s is not None and entry.deadline_s <= now:
                self._state.fail(entry, _expired(entry))
            elif entry.time_limit_s is not None and entry.time_limit_s <= now:
                for sequence in list(entry.live.values()):
                    self._complete(sequence, End(EndReason.TIME_LIMIT))

    def next_moment(self) -> float | None:
        """Returns when `expire` has something to do again. None: no request has a deadline or a time limit."""
        return self._times[0][0] if self._times else None


def _cancelled(cause: gw.CancelCause) -> RequestError:
    if cause == gw.CANCEL_CAUSE_OPERATOR:
        return Cancelled("aborted by an operator", reason=Reason.ABORTED_BY_OPERATOR)
    return Cancelled("cancelled by the client")


def _expired(entry: RequestEntry) -> Expired:
    if not entry.started and all(s.stage is Stage.WAITING for s in entry.live.values()):
        return Expired("the deadline passed in the queue", reason=Reason.EXPIRED_IN_QUEUE)
    return Expired("the deadline passed before the answer was complete")
