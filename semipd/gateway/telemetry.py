"""OpenTelemetry traces of the RPCs, for who asks for them (`--otlp-endpoint`) and has the extra installed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from semipd.core.config import ServerConfig
from semipd.core.errors import StartError


@dataclass(frozen=True, slots=True)
class Tracing:
    """The interceptor that makes spans; `close` sends what is left of them."""

    interceptor: Any
    close: Callable[[], None]


def open_tracing(config: ServerConfig) -> Tracing | None:
    """None: not asked for. Raises StartError where the packages are missing."""
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
    return Tracing(aio_server_interceptor(tracer_provider=provider), provider.shutdown)
