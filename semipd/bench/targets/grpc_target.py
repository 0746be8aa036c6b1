"""A semipd server over its public API."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from itertools import cycle
from typing import Any

import grpc
from google.rpc import error_details_pb2, status_pb2

from semipd.bench.errors import InputError, RunFailed
from semipd.bench.scoring.target_info import TargetInfo
from semipd.bench.scoring.timeline import LoadSample
from semipd.bench.settings import RunSettings, authorization
from semipd.bench.targets.base import (
    CONNECT_S,
    PROBE,
    Address,
    PromptRequest,
    ResponseStream,
    Target,
    check_probe,
    unreachable,
)
from semipd.v1 import admin_pb2, admin_pb2_grpc, generation_pb2, model_pb2, model_pb2_grpc

METHOD = "/semipd.v1.GenerationService/GenerateStream"

CONNECTIONS = 4
"""Connections of each load process. A server with several gateways spreads connections, not streams; and one connection
would share one HTTP/2 flow-control window."""

OPTIONS = (
    ("grpc.use_local_subchannel_pool", 1),  # else all channels of a process share one connection
    ("grpc.max_receive_message_length", 64 << 20),
    ("grpc.max_send_message_length", 64 << 20),
    ("grpc.enable_retries", 0),  # a request that was sent twice would be measured once
)

STATUS_TRAILER = "grpc-status-details-bin"


class GrpcTarget(Target):
    def __init__(self, settings: RunSettings, address: Address) -> None:
        self._settings = settings
        self._metadata = tuple(authorization("grpc").items())
        self._channels = [grpc.aio.insecure_channel(address.hostport, OPTIONS) for _ in range(CONNECTIONS)]
        # the request is bytes already
        self._streams: Iterator[Any] = cycle(
            channel.unary_stream(
                METHOD,
                request_serializer=None,
                response_deserializer=generation_pb2.GenerateStreamResponse.FromString,
            )
            for channel in self._channels
        )
        self._admin: Any = admin_pb2_grpc.AdminServiceStub(self._channels[0])
        self._models: Any = model_pb2_grpc.ModelServiceStub(self._channels[0])

    async def __aexit__(self, *_: object) -> None:
        for channel in self._channels:
            await channel.close(None)

    async def describe(self) -> TargetInfo:
        model: Any = await self._ask(self._models.GetModel, model_pb2.GetModelRequest(model=self._settings.model))
        info = await self._ask(self._admin.GetServerInfo, admin_pb2.GetServerInfoRequest())
        load = await self._ask(self._admin.GetLoad, admin_pb2.GetLoadRequest())
        vocab_size = self._settings.vocab_size or model.model.vocab_size
        if vocab_size > model.model.vocab_size > 0:
            raise InputError(f"--vocab-size {vocab_size} is above that of {model.model.name}, {model.model.vocab_size}")
        probe = ResponseStream()
        await self.send(self.prepare(PROBE), probe)
        check_probe(self._settings.target, probe)
        return TargetInfo(
            protocol="grpc",
            model=model.model.name,
            vocab_size=vocab_size,
            max_context=model.model.max_context or None,
            counting="token ids in each message",
            server={
                "version": info.version,
                "device": info.device,
                "dtype": model.model.dtype,
                "policy": info.policy,
                "partition_backend": info.partition_backend,
                "partition": f"{load.load.partition.prefill:g}/{load.load.partition.decode:g}",
                "total_pages": str(info.total_pages),
                "page_size": str(info.page_size),
            },
        )

    async def _ask(self, method: Any, request: Any) -> Any:
        """Any unary call, before the run."""
        try:
            return await method(request, timeout=CONNECT_S, metadata=self._metadata)
        except grpc.aio.AioRpcError as error:
            if error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
                raise unreachable(self._settings.target, error.details() or error.code().name) from error
            if error.code() is grpc.StatusCode.NOT_FOUND:
                raise InputError(f"{self._settings.target}: {error.details()}") from error
            raise RunFailed(f"{self._settings.target}: {error.code().name}: {error.details()}") from error

    async def connect(self) -> None:
        for channel in self._channels:
            try:
                await self._ready(channel)
            except TimeoutError as error:
                raise unreachable(self._settings.target, "no connection in time") from error

    async def _ready(self, channel: grpc.aio.Channel) -> None:
        async with asyncio.timeout(CONNECT_S):
            await channel.channel_ready()

    def prepare(self, asked: PromptRequest) -> bytes:
        request = generation_pb2.GenerateStreamRequest(
            generation=generation_pb2.Generation(
                model=self._settings.model,
                token_ids=generation_pb2.TokenIds(ids=asked.prompt),
                sampling=generation_pb2.SamplingParams(temperature=0.0),
                stopping=generation_pb2.StoppingParams(
                    max_tokens=asked.output_len, min_tokens=asked.output_len, ignore_eos=True
                ),
                response=generation_pb2.ResponseParams(text=False, token_ids=True, timings=True),
                scheduling=generation_pb2.SchedulingParams(ttft_slo=asked.ttft_slo_s, tpot_slo=asked.tpot_slo_s),
            )
        )
        return request.SerializeToString()

    async def send(self, prepared: bytes, stream: ResponseStream) -> None:
        now: Callable[[], float] = time.monotonic
        times, counts = stream.times, stream.counts
        call = next(self._streams)(prepared, metadata=self._metadata)
        try:
            async for message in call:
                at = now()
                count = len(message.token.token_ids)
                if count:
                    times.append(at)
                    counts.append(count)
                elif message.HasField("summary"):
                    stream.queue_s = message.summary.timings.queue
        except grpc.aio.AioRpcError as error:
            stream.refused = error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            stream.reason = reason_of(error)
        finally:
            call.cancel()

    async def load(self) -> LoadSample | None:
        try:
            answer = await self._admin.GetLoad(admin_pb2.GetLoadRequest(), timeout=CONNECT_S, metadata=self._metadata)
        except grpc.aio.AioRpcError:
            return None
        load = answer.load
        return LoadSample(
            at_s=0.0,
            waiting=load.waiting,
            prefilling=load.prefilling,
            decoding=load.decoding,
            used_pages=load.total_pages - load.free_pages,
            total_pages=load.total_pages,
            prefill_share=load.partition.prefill,
            decode_share=load.partition.decode,
            output_tokens_per_s=load.output_tokens_per_second,
            policy=load.policy,
        )


def reason_of(error: grpc.aio.AioRpcError) -> str:
    """The machine-readable reason and the code; requests that failed alike are counted together."""
    name: str = error.code().name
    for key, value in error.trailing_metadata() or ():
        if key == STATUS_TRAILER and isinstance(value, bytes):
            status = status_pb2.Status.FromString(value)
            for detail in status.details:
                info = error_details_pb2.ErrorInfo()
                if detail.Unpack(info):
                    return f"{info.reason} ({name})"
    return f"{name}: {error.details()}" if error.details() else name
