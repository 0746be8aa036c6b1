"""A running server's load over gRPC, report after report, through restarts of the server."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import grpc

from semipd.bench.errors import InputError, RunFailed, Unreachable
from semipd.v1 import admin_pb2 as pb
from semipd.v1 import admin_pb2_grpc

PATIENCE_S = 5.0
"""Seconds that one answer may take."""
INFO_EVERY_S = 5.0
"""Processes, device and model change seldom; they are asked for again after this, and at each restart or swap."""


@dataclass(frozen=True, slots=True)
class ServerReport:
    info: pb.GetServerInfoResponse
    load: pb.Load


@dataclass(frozen=True, slots=True)
class ServerGone:
    """The server stopped answering; it is being tried again."""

    reason: str


def address_of(target: str) -> str:
    """HOST:PORT of `HOST:PORT` or `grpc://HOST:PORT`."""
    address = target.removeprefix("grpc://")
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or "/" in address:
        raise InputError(f"--target: HOST:PORT is wanted, got {target!r}")
    return address


class LoadWatch:
    """Owns its channel while entered. `now` and `frames` raise Unreachable when the server has never answered."""

    def __init__(self, target: str) -> None:
        self._address = address_of(target)
        self._channel = grpc.insecure_channel(
            self._address,
            options=[
                # A server that comes back is found within a second instead of gRPC's two minutes.
                ("grpc.initial_reconnect_backoff_ms", 100),
                ("grpc.max_reconnect_backoff_ms", 1000),
                # A gateway that hangs with its socket open is noticed. Servers allow a ping every 10 s.
                ("grpc.keepalive_time_ms", 10_000),
                ("grpc.keepalive_timeout_ms", 5_000),
            ],
        )
        self._stub = admin_pb2_grpc.AdminServiceStub(self._channel)

    def __enter__(self) -> LoadWatch:
        return self

    def __exit__(self, *_: object) -> None:
        self._channel.close()

    def now(self) -> ServerReport:
        """One report."""
        try:
            return ServerReport(self._info(), self._stub.GetLoad(pb.GetLoadRequest(), timeout=PATIENCE_S).load)
        except grpc.RpcError as error:
            raise self._first_failure(error) from None

    def frames(self, interval_s: float) -> Iterator[ServerReport | ServerGone]:
        """Endless: a report each interval; ServerGone as long as the server doesn't answer, about one an interval."""
        try:
            info = self._info()
        except grpc.RpcError as error:
            raise self._first_failure(error) from None
        reports = 0
        before: pb.Load | None = None
        while True:
            try:
                for response in self._stub.WatchLoad(pb.WatchLoadRequest(interval=interval_s)):
                    load = response.load
                    reports += 1
                    if before is None or changed(before, load) or reports * interval_s >= INFO_EVERY_S:
                        info, reports = self._info(), 0
                    before = load
                    yield ServerReport(info, load)
                yield ServerGone(f"{self._address} ended the stream")
            except grpc.RpcError as error:
                yield ServerGone(said(error))
            before = None  # whoever comes back may be another
            self._wait_for_server(interval_s)

    def _info(self) -> pb.GetServerInfoResponse:
        info: pb.GetServerInfoResponse = self._stub.GetServerInfo(pb.GetServerInfoRequest(), timeout=PATIENCE_S)
        return info

    def _wait_for_server(self, seconds: float) -> None:
        try:
            grpc.channel_ready_future(self._channel).result(timeout=seconds)
        except grpc.FutureTimeoutError:
            return

    def _first_failure(self, error: grpc.RpcError) -> Unreachable | RunFailed:
        if error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
            return Unreachable(f"no semipd server answers at {self._address}: {said(error)}")
        return RunFailed(f"{self._address} answers, but not as a semipd server: {said(error)}")


def changed(before: pb.Load, now: pb.Load) -> bool:
    """Returns whether the processes or the policy have changed."""
    return (before.worker_restarts_total, before.policy) != (now.worker_restarts_total, now.policy)


def said(error: grpc.RpcError) -> str:
    """Status code and details, without the stack that str() of it has."""
    return f"{error.code().name}: {error.details()}"
