"""Traces of the RPCs, where OpenTelemetry's packages are installed; and what makes our streams fit them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest

from semipd.gateway.telemetry import generator_of
from semipd.internal.v1 import sequence_pb2 as seq
from support.gateway_bench import PATIENCE_S, OpenBench, make_delta


class RecordedContext:
    """Knows nothing but who wants to hear of the RPC's end."""

    def __init__(self) -> None:
        self.callbacks: list[Callable[[object], object]] = []

    def add_done_callback(self, callback: Callable[[object], object]) -> None:
        self.callbacks.append(callback)


async def test_what_a_handler_writes_is_what_its_generator_yields() -> None:
    async def behaviour(request: Any, context: Any) -> None:
        for number in range(request):
            await context.write(number)

    context: Any = RecordedContext()
    assert [item async for item in generator_of(behaviour)(5, context)] == [0, 1, 2, 3, 4]


async def test_an_error_comes_after_what_was_written_before_it() -> None:
    async def behaviour(_request: Any, context: Any) -> None:
        await context.write("first")
        raise LookupError

    context: Any = RecordedContext()
    answers = generator_of(behaviour)(None, context)
    assert await anext(answers) == "first"
    with pytest.raises(LookupError):
        await anext(answers)


async def test_a_handler_ends_with_its_rpc_even_between_two_messages() -> None:
    ended = asyncio.Event()

    async def behaviour(_request: Any, context: Any) -> None:
        try:
            for _ in range(3):
                await context.write("more")
        finally:
            ended.set()

    context: Any = RecordedContext()
    answers = generator_of(behaviour)(None, context)
    await anext(answers)
    for callback in context.callbacks:
        callback(None)
    async with asyncio.timeout(PATIENCE_S):
        await ended.wait()


async def test_spans_reach_the_collector(open_bench: OpenBench) -> None:
    pytest.importorskip("opentelemetry.instrumentation.grpc")
    pytest.importorskip("opentelemetry.exporter.otlp.proto.grpc.trace_exporter")
    exported: list[str] = []

    class Collector(grpc.GenericRpcHandler):
        def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any]:
            exported.append(details.method)
            return grpc.unary_unary_rpc_method_handler(lambda _request, _context: b"")

    collector = grpc.server(ThreadPoolExecutor(1))
    collector.add_generic_rpc_handlers((Collector(),))
    port = collector.add_insecure_port("127.0.0.1:0")
    collector.start()
    try:
        async with open_bench(otlp_endpoint=f"http://127.0.0.1:{port}") as bench:
            call = bench.stream(text="x")
            submit = await bench.coordinator.admit()
            await bench.coordinator.deltas(make_delta(submit.ticket, 0, [40], end=seq.END_REASON_LENGTH))
            while (event := await call.read()) is not grpc.aio.EOF:
                last = event
            assert last.HasField("summary")
    finally:
        collector.stop(None)
    assert "/opentelemetry.proto.collector.trace.v1.TraceService/Export" in exported
