"""A gateway: puts the gRPC server, the link to the coordinator and the services together."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Self

import grpc
import structlog
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from semipd.core.config import ServerConfig
from semipd.core.errors import StartError
from semipd.gateway.auth import ApiKeyInterceptor, read_api_keys, tls_credentials
from semipd.gateway.chat import ChatRenderer, ChatTemplate
from semipd.gateway.coordinator_client import CoordinatorClient
from semipd.gateway.health import Health
from semipd.gateway.interceptor import ErrorInterceptor
from semipd.gateway.prompts import PromptEncoder
from semipd.gateway.served_model import ServedModel, read_served_model
from semipd.gateway.services.admin import AdminService
from semipd.gateway.services.generation import GenerationService
from semipd.gateway.services.model import ModelService
from semipd.gateway.services.tokenizer import TokenizerService
from semipd.gateway.telemetry import open_tracing
from semipd.gateway.tokenizer import ServedTokenizer
from semipd.internal.v1 import gateway_pb2 as gw
from semipd.v1 import (
    admin_pb2,
    admin_pb2_grpc,
    generation_pb2,
    generation_pb2_grpc,
    model_pb2,
    model_pb2_grpc,
    tokenizer_pb2,
    tokenizer_pb2_grpc,
)
from semipd.wire.sockets import RunDir

log = structlog.get_logger()

MAX_REQUEST_BYTES = 4 * 1024 * 1024
"""Most bytes of a request."""
MAX_ANSWER_BYTES = 64 * 1024 * 1024
"""Most bytes of an answer: 16 samples with alternatives at each position are large."""
CLIENT_PING_MS = 5_000
"""Least time between two pings of a client. Clients ping every 10 s; half of it is allowed, because a network may bunch
pings up."""
SERVER_PING_MS = 10_000
SERVER_PING_TIMEOUT_MS = 10_000
"""A client that has gone without a word is noticed after both times together, at the latest."""
SPARE_STREAMS = 1024
"""Streams that one connection may have beyond what the queue takes: a refusal must reach its client at once."""

SERVICES = tuple(
    pb.DESCRIPTOR.services_by_name[name].full_name
    for pb, name in (
        (generation_pb2, "GenerationService"),
        (model_pb2, "ModelService"),
        (tokenizer_pb2, "TokenizerService"),
        (admin_pb2, "AdminService"),
    )
)


def channel_options(config: ServerConfig) -> list[tuple[str, int]]:
    return [
        ("grpc.max_receive_message_length", MAX_REQUEST_BYTES),
        ("grpc.max_send_message_length", MAX_ANSWER_BYTES),
        ("grpc.max_concurrent_streams", 2 * (config.max_waiting + config.max_running) + SPARE_STREAMS),
        ("grpc.keepalive_time_ms", SERVER_PING_MS),
        ("grpc.keepalive_timeout_ms", SERVER_PING_TIMEOUT_MS),
        # gRPC's own pings (it measures bandwidth) hold keepalive's back while they are unanswered.
        ("grpc.http2.ping_timeout_ms", SERVER_PING_TIMEOUT_MS),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_recv_ping_interval_without_data_ms", CLIENT_PING_MS),
        ("grpc.http2.max_pings_without_data", 0),
        # Off unless asked for: two servers on one port would each get some of the other's clients.
        ("grpc.so_reuseport", int(config.gateways > 1)),
    ]


class Gateway:
    """Serves clients: `async with` starts it, `stop` lets it finish, leaving ends it. Raises StartError."""

    def __init__(self, config: ServerConfig, run_dir: RunDir, name: str) -> None:
        self._config = config
        self._run_dir = run_dir
        self._name = name
        self._stopping = asyncio.Event()
        self.port = 0

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            await self._start(stack)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    async def _start(self, stack: AsyncExitStack) -> None:
        model = read_served_model(self._config)
        prompts = await _open_prompts(stack, model)
        self._health = Health(SERVICES)
        link = stack.enter_context(CoordinatorClient(self._run_dir, self._name, self._on_server_state))
        self._server = self._make_server(stack, link)
        self._add_services(model, prompts, link)
        self.port = self._bind()
        await self._server.start()
        stack.push_async_callback(self.stop, 0.0)
        link.hello(self.port)

    def _on_server_state(self, state: gw.ServerState) -> None:
        self._health.set_serving(state.serving and not state.draining)

    def _make_server(self, stack: AsyncExitStack, link: CoordinatorClient) -> grpc.aio.Server:
        interceptors: list[grpc.aio.ServerInterceptor] = []
        tracing = open_tracing(self._config)
        if tracing is not None:
            stack.callback(tracing.close)
            interceptors.extend(tracing.interceptors)
        if self._config.api_keys_file:
            interceptors.append(ApiKeyInterceptor(read_api_keys(self._config.api_keys_file), link.count_refusal))
        interceptors.append(ErrorInterceptor())
        return grpc.aio.server(interceptors=interceptors, options=channel_options(self._config))

    def _add_services(self, model: ServedModel, prompts: PromptEncoder, link: CoordinatorClient) -> None:
        server = self._server
        generation_pb2_grpc.add_GenerationServiceServicer_to_server(GenerationService(model, prompts, link), server)  # type: ignore[no-untyped-call, unused-ignore]
        model_pb2_grpc.add_ModelServiceServicer_to_server(ModelService(model, prompts.features), server)  # type: ignore[no-untyped-call, unused-ignore]
        tokenizer_pb2_grpc.add_TokenizerServiceServicer_to_server(TokenizerService(model, prompts), server)  # type: ignore[no-untyped-call, unused-ignore]
        admin = AdminService(link, self._config.drain_timeout_s, self._stopping)
        admin_pb2_grpc.add_AdminServiceServicer_to_server(admin, server)  # type: ignore[no-untyped-call, unused-ignore]
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)  # type: ignore[no-untyped-call, unused-ignore]
        health = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
        reflection.enable_server_reflection((*SERVICES, health, reflection.SERVICE_NAME), server)

    def _bind(self) -> int:
        host, port = self._config.host, self._config.port
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        credentials = tls_credentials(self._config)
        try:
            if credentials is None:
                return self._server.add_insecure_port(address)
            return self._server.add_secure_port(address, credentials)
        except RuntimeError as error:
            raise StartError(f"--host and --port: can't listen on {address}: in use, or no address of ours") from error

    async def stop(self, grace_s: float) -> None:
        """Takes nothing new, and ends what still runs after `grace_s` seconds. Can be called again with less."""
        self._stopping.set()
        self._health.close()
        await self._server.stop(grace_s)


async def _open_prompts(stack: AsyncExitStack, model: ServedModel) -> PromptEncoder:
    tokenizer = ServedTokenizer.of_checkpoint(model.directory)
    if tokenizer is None:
        log.warning("the checkpoint has no tokenizer.json: token ids alone go in and out")
        return PromptEncoder(None, None)
    stack.callback(tokenizer.close)
    template = ChatTemplate.of_checkpoint(model.directory)
    if template is None:
        return PromptEncoder(tokenizer, None)
    renderer = ChatRenderer(template)
    stack.push_async_callback(renderer.close)
    await renderer.start()
    return PromptEncoder(tokenizer, renderer)
