"""Answers the questions of the AdminService."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import structlog

from semipd import __version__
from semipd.coordinator.observations import LatencyPercentiles
from semipd.coordinator.partition import PartitionController
from semipd.coordinator.policy_host import PolicyHost
from semipd.coordinator.requests import Stage
from semipd.coordinator.state import CoordinatorState
from semipd.core.config import PAGE_SIZE
from semipd.core.errors import ConfigError, InvalidRequest, NotFound, Reason, RequestError
from semipd.core.partition import Shares
from semipd.internal.v1 import gateway_pb2 as gw
from semipd.policies.registry import discover, make_policy
from semipd.v1 import admin_pb2 as pb
from semipd.wire.codec import failure_to_wire

log = structlog.get_logger()

ListProcesses = Callable[[], Iterable[tuple[str, int, int]]]
"""Returns what each process of the server is, its process id and its incarnation."""


@dataclass(frozen=True, slots=True)
class DrainWaiter:
    """An operator who waits for the last request to end."""

    gateway: bytes
    ask_id: int
    until_s: float


class AdminController:
    """Answers questions about the server, and changes policy and partition."""

    def __init__(
        self,
        state: CoordinatorState,
        host: PolicyHost,
        partition: PartitionController,
        model: str,
        processes: ListProcesses,
    ) -> None:
        self._state = state
        self._host = host
        self._partition = partition
        self._model = model
        self._processes = processes
        self._started_s = state.clock.now()
        self._drain_waiters: list[DrainWaiter] = []

    def on_ask(self, gateway: bytes, ask: gw.Ask) -> None:
        """Answers a question at once. Only a drain is answered later, by `answer_drains`."""
        answer = gw.Answer(ask_id=ask.ask_id)
        try:
            match ask.WhichOneof("question"):
                case "server_info":
                    answer.server_info.CopyFrom(self._server_info())
                case "load":
                    answer.load.load.CopyFrom(self.load())
                case "policies":
                    answer.policies.CopyFrom(self._policies())
                case "set_policy":
                    answer.set_policy.CopyFrom(self._set_policy(ask.set_policy))
                case "set_partition":
                    answer.set_partition.CopyFrom(self._set_partition(ask.set_partition))
                case "drain":
                    self._drain(gateway, ask)
                    return
                case _:
                    raise RequestError("the coordinator does not know this question")
        except RequestError as error:
            answer.failure.CopyFrom(failure_to_wire(error))
        self._state.transport.to_gateway(gateway, gw.ToGateway(answer=answer))

    def _server_info(self) -> pb.GetServerInfoResponse:
        pages = self._state.account.counts().total if self._state.account else 0
        return pb.GetServerInfoResponse(
            version=__version__,
            model=self._model,
            device=self._state.config.device,
            partition_backend=self._partition.backend,
            policy=self._host.name,
            processes=[pb.Process(role=role, pid=pid, incarnation=n) for role, pid, n in self._processes()],
            uptime=self._state.clock.now() - self._started_s,
            total_pages=pages,
            page_size=PAGE_SIZE,
        )

    def load(self) -> pb.Load:
        """Returns the server's load as it is now."""
        state, now = self._state, self._state.clock.now()
        counts = state.account.counts() if state.account else None
        seen = state.observations
        requests = state.requests.all_sequences()
        begun = sum(s.stage is Stage.PREFILLING or (s.stage is Stage.WAITING and s.computed > 0) for s in requests)
        running = sum(s.stage in (Stage.READY, Stage.DECODING) for s in requests)
        return pb.Load(
            waiting=len(requests) - begun - running,
            prefilling=begun,
            decoding=running,
            free_pages=counts.free if counts else 0,
            total_pages=counts.total if counts else 0,
            partition=pb.Partition(prefill=state.shares.prefill, decode=state.shares.decode),
            policy=self._host.name,
            draining=state.draining,
            time_to_first_token=_percentiles(seen.ttft(now)),
            inter_token_latency=_percentiles(seen.itl(now)),
            output_tokens_per_second=seen.tokens_per_second(now),
            finished_total=state.metrics.finished_total,
            refused_total=state.metrics.refused_total,
            worker_restarts_total=state.metrics.restarts_total,
            slo_attainment=seen.attainment(now),
        )

    def _policies(self) -> pb.ListPoliciesResponse:
        return pb.ListPoliciesResponse(
            policies=[
                pb.Policy(name=p.name, summary=p.summary, distribution=p.distribution, active=p.name == self._host.name)
                for p in discover().values()
            ]
        )

    def _set_policy(self, request: pb.SetPolicyRequest) -> pb.SetPolicyResponse:
        installed = discover()
        if request.name not in installed:
            known = ", ".join(installed)
            raise NotFound(f"no policy is named {request.name!r}; installed: {known}", reason=Reason.POLICY_NOT_FOUND)
        try:
            policy = make_policy(request.name, dict(request.options))
        except ConfigError as error:
            raise InvalidRequest.of("options", str(error)) from error
        previous = self._host.swap(policy)
        log.info("policy changed", previous=previous, policy=request.name)
        return pb.SetPolicyResponse(previous=previous)

    def _set_partition(self, request: pb.SetPartitionRequest) -> pb.SetPartitionResponse:
        try:
            shares = Shares(request.partition.prefill, request.partition.decode)
        except ValueError as error:
            raise InvalidRequest.of("partition", str(error)) from error
        granted = self._partition.set(shares)
        return pb.SetPartitionResponse(granted=pb.Partition(prefill=granted.prefill, decode=granted.decode))

    def _drain(self, gateway: bytes, ask: gw.Ask) -> None:
        self._state.draining = True
        timeout = ask.drain.timeout if ask.drain.HasField("timeout") else self._state.config.drain_timeout_s
        self._drain_waiters.append(DrainWaiter(gateway, ask.ask_id, self._state.clock.now() + timeout))

    def answer_drains(self) -> None:
        """Answers the waiters of a drain that is over, and those whose time has passed."""
        remaining, now = len(self._state.requests), self._state.clock.now()
        for waiter in list(self._drain_waiters):
            if remaining == 0 or now >= waiter.until_s:
                self._drain_waiters.remove(waiter)
                answer = gw.Answer(ask_id=waiter.ask_id, drain=pb.DrainResponse(remaining=remaining))
                self._state.transport.to_gateway(waiter.gateway, gw.ToGateway(answer=answer))


def _percentiles(seen: LatencyPercentiles | None) -> pb.Percentiles | None:
    return pb.Percentiles(p50=seen.p50, p90=seen.p90, p99=seen.p99) if seen else None
