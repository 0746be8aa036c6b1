"""AdminService: sends every question to the coordinator, which answers for the whole server."""

from __future__ import annotations

import asyncio

from semipd.core.errors import Reason, Unavailable
from semipd.gateway.coordinator_client import ANSWER_S, CoordinatorClient
from semipd.gateway.interceptor import Context
from semipd.gateway.validate import Violations, refuse_unknown_fields
from semipd.internal.v1 import gateway_pb2 as gw
from semipd.v1 import admin_pb2 as pb
from semipd.v1 import admin_pb2_grpc

MAX_DRAIN_S = 86_400.0


class AdminService(admin_pb2_grpc.AdminServiceServicer):  # type: ignore[misc, unused-ignore]
    def __init__(self, link: CoordinatorClient, drain_timeout_s: float, stopping: asyncio.Event) -> None:
        self._link = link
        self._drain_timeout_s = drain_timeout_s
        self._stopping = stopping

    async def GetServerInfo(self, request: pb.GetServerInfoRequest, _context: Context) -> pb.GetServerInfoResponse:
        return (await self._link.ask(gw.Ask(server_info=request))).server_info

    async def GetLoad(self, request: pb.GetLoadRequest, _context: Context) -> pb.GetLoadResponse:
        return (await self._link.ask(gw.Ask(load=request))).load

    async def WatchLoad(self, request: pb.WatchLoadRequest, context: Context) -> None:
        wrong = Violations()
        interval_s = wrong.number(request, "interval", 1.0, 0.05, 60.0)
        wrong.raise_if_any()
        while True:
            answer = await self._link.ask(gw.Ask(load=pb.GetLoadRequest()))
            await context.write(pb.WatchLoadResponse(load=answer.load.load))
            try:
                async with asyncio.timeout(interval_s):
                    await self._stopping.wait()
            except TimeoutError:
                continue
            raise Unavailable("the server is shutting down", reason=Reason.DRAINING)

    async def Drain(self, request: pb.DrainRequest, _context: Context) -> pb.DrainResponse:
        wrong = Violations()
        timeout_s = wrong.number(request, "timeout", self._drain_timeout_s, 0.0, MAX_DRAIN_S)
        wrong.raise_if_any()
        return (await self._link.ask(gw.Ask(drain=request), timeout_s + ANSWER_S)).drain

    async def ListPolicies(self, request: pb.ListPoliciesRequest, _context: Context) -> pb.ListPoliciesResponse:
        return (await self._link.ask(gw.Ask(policies=request))).policies

    async def SetPolicy(self, request: pb.SetPolicyRequest, _context: Context) -> pb.SetPolicyResponse:
        refuse_unknown_fields(request)
        wrong = Violations()
        if not request.name:
            wrong.add("name", "must not be empty")
        wrong.raise_if_any()
        return (await self._link.ask(gw.Ask(set_policy=request))).set_policy

    async def SetPartition(self, request: pb.SetPartitionRequest, _context: Context) -> pb.SetPartitionResponse:
        refuse_unknown_fields(request)
        wrong = Violations()
        if not request.HasField("partition"):
            wrong.add("partition", "must be set")
        for name in ("prefill", "decode"):
            share = getattr(request.partition, name)
            if not 0.0 <= share <= 100.0:
                wrong.add(f"partition.{name}", f"must be 0 to 100; got {share:g}")
        wrong.raise_if_any()
        return (await self._link.ask(gw.Ask(set_partition=request))).set_partition
