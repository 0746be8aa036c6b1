"""The client for programs with an event loop."""

# ruff: noqa: ASYNC109  (a timeout here is the deadline that gRPC tells the server, not a wait of ours)

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import Self, Unpack

import grpc
import grpc.aio

from semipd_client import channel as rpc
from semipd_client import request_messages
from semipd_client._proto.semipd.client.v1 import health_pb2
from semipd_client._proto.semipd.v1 import admin_pb2, generation_pb2, model_pb2
from semipd_client.async_stream import AsyncResponses, AsyncStream
from semipd_client.channel import RETRY_INTERVAL_S, A, Method, Q, TlsOptions
from semipd_client.errors import DeadlineExceeded, Unavailable, error_of, not_ready
from semipd_client.options import Message, Options, Prompt, generation_from
from semipd_client.results import AbortOutcome, Generation, abort_outcome_of, generation_of
from semipd_client.server import (
    Load,
    Model,
    Partition,
    Policy,
    ServerInfo,
    load_of,
    model_of,
    partition_of,
    policy_of,
    server_info_of,
)


class AsyncClient:
    """Speaks to one server; to be made and used in one event loop. Close it, or use it with
    `async with`.

    Every method raises SemipdClientError, and takes `timeout`, the call's deadline in seconds; without one the
    client's own holds, and without that there is none. Nothing is tried a second time.
    """

    def __init__(
        self,
        target: str = "127.0.0.1:50051",
        *,
        api_key: str | None = None,
        tls: TlsOptions | None = None,
        timeout: float | None = None,
    ) -> None:
        self.target = target
        self._metadata = rpc.metadata_for(api_key)
        self._timeout = timeout
        options = rpc.channel_options(target, tls)
        if tls is None:
            self._channel = grpc.aio.insecure_channel(target, options)
        else:
            self._channel = grpc.aio.secure_channel(target, tls.credentials(), options)

    async def close(self) -> None:
        """Cancels what is under way."""
        await self._channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def generate(self, prompt: Prompt, *, timeout: float | None = None, **options: Unpack[Options]) -> Generation:
        """Returns the whole answer at once."""
        request = generation_pb2.GenerateRequest(generation=generation_from(prompt, options))
        return generation_of(await self._ask(rpc.GENERATE, request, timeout))

    def stream(self, prompt: Prompt, *, timeout: float | None = None, **options: Unpack[Options]) -> AsyncStream:
        """Returns the answer as it is made. The request is under way at once; reading raises what goes wrong."""
        request = generation_pb2.GenerateStreamRequest(generation=generation_from(prompt, options))
        return AsyncStream(self._call_stream(rpc.GENERATE_STREAM, request, timeout))

    async def abort(self, request_id: str, *, timeout: float | None = None) -> AbortOutcome:
        """Ends a request; the caller that waits for its answer gets Aborted. Idempotent."""
        return abort_outcome_of(await self._ask(rpc.ABORT, generation_pb2.AbortRequest(request_id=request_id), timeout))

    async def models(self, *, timeout: float | None = None) -> tuple[Model, ...]:
        answer = await self._ask(rpc.LIST_MODELS, model_pb2.ListModelsRequest(), timeout)
        return tuple(model_of(m) for m in answer.models)

    async def model(self, name: str | None = None, *, timeout: float | None = None) -> Model:
        """Returns limits and capabilities of a model; without a name, those of the only one."""
        answer = await self._ask(rpc.GET_MODEL, model_pb2.GetModelRequest(model=name), timeout)
        return model_of(answer.model)

    async def tokenize(
        self,
        text: str | Sequence[Message | Mapping[str, str]],
        *,
        model: str | None = None,
        add_special_tokens: bool | None = None,
        timeout: float | None = None,
    ) -> tuple[int, ...]:
        """Returns the token ids of a text, or of a chat after the model's template."""
        request = request_messages.tokenize(text, model, add_special_tokens)
        answer = await self._ask(rpc.TOKENIZE, request, timeout)
        return tuple(answer.token_ids)

    async def detokenize(
        self,
        token_ids: Sequence[int],
        *,
        model: str | None = None,
        skip_special_tokens: bool | None = None,
        timeout: float | None = None,
    ) -> str:
        answer = await self._ask(
            rpc.DETOKENIZE, request_messages.detokenize(token_ids, model, skip_special_tokens), timeout
        )
        return answer.text

    async def server_info(self, *, timeout: float | None = None) -> ServerInfo:
        return server_info_of(await self._ask(rpc.GET_SERVER_INFO, admin_pb2.GetServerInfoRequest(), timeout))

    async def load(self, *, timeout: float | None = None) -> Load:
        answer = await self._ask(rpc.GET_LOAD, admin_pb2.GetLoadRequest(), timeout)
        return load_of(answer.load)

    def watch_load(
        self, interval: float | None = None, *, timeout: float | None = None
    ) -> AsyncResponses[admin_pb2.WatchLoadResponse, Load]:
        """Yields a report every `interval` seconds (server's default: 1) until you leave the iteration."""
        call = self._call_stream(rpc.WATCH_LOAD, admin_pb2.WatchLoadRequest(interval=interval), timeout)
        return AsyncResponses(call, lambda m: load_of(m.load))

    async def drain(self, wait_s: float | None = None, *, timeout: float | None = None) -> int:
        """Makes the server refuse new requests. Returns, after `wait_s` at most, how many are still alive."""
        answer = await self._ask(rpc.DRAIN, admin_pb2.DrainRequest(timeout=wait_s), timeout)
        return answer.remaining

    async def policies(self, *, timeout: float | None = None) -> tuple[Policy, ...]:
        answer = await self._ask(rpc.LIST_POLICIES, admin_pb2.ListPoliciesRequest(), timeout)
        return tuple(policy_of(p) for p in answer.policies)

    async def set_policy(
        self, name: str, options: Mapping[str, str] | None = None, *, timeout: float | None = None
    ) -> str:
        """Exchanges the policy without dropping a request. Returns the name of the former one."""
        answer = await self._ask(rpc.SET_POLICY, request_messages.set_policy(name, options), timeout)
        return answer.previous

    async def set_partition(self, prefill: float, decode: float, *, timeout: float | None = None) -> Partition:
        """Asks for shares, in percent. Returns what was granted."""
        answer = await self._ask(rpc.SET_PARTITION, request_messages.set_partition(prefill, decode), timeout)
        return partition_of(answer.granted)

    async def is_serving(self, *, timeout: float | None = None) -> bool:
        """Returns True if requests make progress there; False also if nobody listens."""
        try:
            answer = await self._ask(rpc.HEALTH_CHECK, health_pb2.HealthCheck(), timeout)
        except Unavailable:
            return False
        return answer.status == health_pb2.SERVING_STATUS_SERVING

    async def wait_ready(self, timeout: float = 60.0) -> None:
        """Returns when the server serves. Raises Unavailable if it doesn't within `timeout` seconds."""
        until = time.monotonic() + timeout
        heard = False
        while (left := until - time.monotonic()) > 0:
            call = self._call_stream(rpc.HEALTH_WATCH, health_pb2.HealthCheck(), left, wait_for_ready=True)
            try:
                async for status in AsyncResponses(call, lambda m: m.status):
                    heard = True
                    if status == health_pb2.SERVING_STATUS_SERVING:
                        return
            except DeadlineExceeded:
                break
            except Unavailable:
                pass
            # It was there and broke off: it is starting or going.
            await asyncio.sleep(min(RETRY_INTERVAL_S, left))
        raise not_ready(self.target, timeout, heard)

    async def _ask(self, method: Method[Q, A], question: Q, timeout: float | None) -> A:
        ask = self._channel.unary_unary(method.path, method.encode, method.decode)
        try:
            return await ask(question, timeout=self._deadline(timeout), metadata=self._metadata)
        except grpc.RpcError as error:
            raise error_of(error) from error

    def _call_stream(
        self, method: Method[Q, A], question: Q, timeout: float | None, wait_for_ready: bool | None = None
    ) -> grpc.aio.UnaryStreamCall[Q, A]:
        ask = self._channel.unary_stream(method.path, method.encode, method.decode)
        return ask(question, timeout=self._deadline(timeout), metadata=self._metadata, wait_for_ready=wait_for_ready)

    def _deadline(self, timeout: float | None) -> float | None:
        return self._timeout if timeout is None else timeout
