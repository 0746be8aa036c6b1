"""OpenTelemetry traces of the RPCs, where `--otlp-endpoint` asks for them and the extra is installed."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import grpc

from semipd.core.config import ServerConfig
from semipd.core.errors import StartError
from semipd.gateway.interceptor import Behaviour, Context, Continuation, Handler


@dataclass(frozen=True, slots=True)
class Tracing:
    """The interceptors that make spans, outermost first; `close` sends what is left of them."""

    interceptors: tuple[grpc.aio.ServerInterceptor, ...]
    close: Callable[[], None]


def open_tracing(config: ServerConfig) -> Tracing | None:
    """Opens tracing; None: it was not asked for. Raises StartError if the packages are missing."""
    if not config.otlp_endpoint:
        return None
    try:
        # Only here: the packages are an extra.
        # ruff: noqa: PLC0415
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter  # type: ignore[import-not-found, unused-ignore]
        from opentelemetry.instrumentation.grpc import aio_server_interceptor  # type: ignore[import-not-found, unused-ignore]
        from opentelemetry.sdk.resources import Resource  # type: ignore[import-not-found, unused-ignore]
        from opentelemetry.sdk.trace import TracerProvider  # type: ignore[import-not-found, unused-ignore]
        from opentelemetry.sdk.trace.export import BatchSpanProcessor  # type: ignore[import-not-found, unused-ignore]
    except ImportError as error:
        raise StartError(
            f"--otlp-endpoint: {error.name} is not installed; tracing needs the extra: pip install 'semipd[otel]'"
        ) from error
    provider = TracerProvider(resource=Resource.create({"service.name": "semipd"}))
    insecure = not config.otlp_endpoint.startswith("https://")
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=config.otlp_endpoint, insecure=insecure)))
    spans = aio_server_interceptor(tracer_provider=provider)  # type: ignore[no-untyped-call, unused-ignore]
    return Tracing((spans, StreamsAsGenerators()), provider.shutdown)


class StreamsAsGenerators(grpc.aio.ServerInterceptor):  # type: ignore[misc, unused-ignore]
    """Makes generators of streaming handlers: OpenTelemetry's interceptor iterates over them, and ours write to their
    context."""

    async def intercept_service(
        self, continuation: Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> Handler | None:
        handler: Any = await continuation(handler_call_details)
        if handler is None or not handler.response_streaming:
            return handler  # type: ignore[no-any-return]
        kind = "stream_stream" if handler.request_streaming else "unary_stream"
        behaviour = getattr(handler, kind)
        if not inspect.iscoroutinefunction(behaviour):
            return handler  # type: ignore[no-any-return]
        return getattr(grpc, f"{kind}_rpc_method_handler")(  # type: ignore[no-any-return]
            generator_of(behaviour), handler.request_deserializer, handler.response_serializer
        )


class RedirectedContext:
    """A context whose messages go to `write`."""

    def __init__(self, context: Context, write: Callable[[Any], Awaitable[None]]) -> None:
        self._context = context
        self.write = write

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)


def generator_of(behaviour: Behaviour) -> Callable[[Any, Context], AsyncIterator[Any]]:
    async def generate(request: Any, context: Context) -> AsyncIterator[Any]:
        written: asyncio.Queue[Any] = asyncio.Queue(maxsize=1)
        answering = asyncio.ensure_future(behaviour(request, RedirectedContext(context, written.put)))  # type: ignore[arg-type]
        # The generator may be left for dead between two messages when the client leaves.
        context.add_done_callback(lambda _: answering.cancel())  # type: ignore[arg-type, unused-ignore]
        try:
            while not answering.done() or not written.empty():
                getting = asyncio.ensure_future(written.get())
                await asyncio.wait((getting, answering), return_when=asyncio.FIRST_COMPLETED)
                if not getting.done():
                    getting.cancel()
                    continue
                yield getting.result()
            await answering
        finally:
            answering.cancel()

    return generate
