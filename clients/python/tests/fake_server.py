"""A real gRPC server on loopback with services whose answers a test writes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NoReturn, Self

import grpc
from google.protobuf import duration_pb2
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health, health_pb2_grpc
from grpc_status import rpc_status

from semipd_client._proto.semipd.v1 import (
    admin_pb2,
    admin_pb2_grpc,
    generation_pb2,
    generation_pb2_grpc,
    model_pb2_grpc,
    tokenizer_pb2_grpc,
)

Events = Iterator[generation_pb2.GenerateStreamResponse]
PATIENCE_S = 90.0


class FakeServer:
    """`stream` and `answer` are what a test replaces; `seen` holds the requests, in order."""

    def __init__(self, credentials: grpc.ServerCredentials | None = None) -> None:
        self.seen: list[Any] = []
        self.metadata: list[dict[str, str]] = []
        self.left = threading.Event()
        """Set when a stream's RPC is over for the server."""
        self.stream: Callable[[generation_pb2.Generation, grpc.ServicerContext], Events] = lambda g, c: whole("Hi", "!")
        self.answer: Callable[[Any, grpc.ServicerContext], Message] = lambda q, c: generation_pb2.GenerateResponse()
        self.health = _Health()
        self._server = grpc.server(ThreadPoolExecutor(8))
        services: list[tuple[Any, Callable[..., None]]] = [
            (_Generation(self), generation_pb2_grpc.add_GenerationServiceServicer_to_server),
            (_Models(self), model_pb2_grpc.add_ModelServiceServicer_to_server),
            (_Tokenizer(self), tokenizer_pb2_grpc.add_TokenizerServiceServicer_to_server),
            (_Admin(self), admin_pb2_grpc.add_AdminServiceServicer_to_server),
            (self.health, health_pb2_grpc.add_HealthServicer_to_server),
        ]
        for servicer, add in services:
            add(servicer, self._server)
        here = "127.0.0.1:0"
        if credentials is None:
            self.port = self._server.add_insecure_port(here)
        else:
            self.port = self._server.add_secure_port(here, credentials)
        self.address = f"127.0.0.1:{self.port}"

    def note(self, request: Any, context: grpc.ServicerContext) -> None:
        self.seen.append(request)
        self.metadata.append({key: str(value) for key, value in context.invocation_metadata()})

    def __enter__(self) -> Self:
        self._server.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.stop(None).wait()


def unary(name: str) -> Callable[..., Message]:
    def answer(self: _Part, request: Any, context: grpc.ServicerContext) -> Message:
        self.server.note(request, context)
        return self.server.answer(request, context)

    answer.__name__ = name
    return answer


class _Part:
    def __init__(self, server: FakeServer) -> None:
        self.server = server


class _Health(health.HealthServicer):
    def __init__(self) -> None:
        super().__init__()
        self.watched = threading.Event()

    def Watch(self, *given: Any) -> Any:
        answers = super().Watch(*given)
        self.watched.set()
        return answers


class _Generation(_Part, generation_pb2_grpc.GenerationServiceServicer):
    Generate = unary("Generate")
    Abort = unary("Abort")

    def GenerateStream(self, request: generation_pb2.GenerateStreamRequest, context: grpc.ServicerContext) -> Events:
        self.server.note(request, context)
        context.add_callback(self.server.left.set)
        yield from self.server.stream(request.generation, context)


class _Models(_Part, model_pb2_grpc.ModelServiceServicer):
    ListModels = unary("ListModels")
    GetModel = unary("GetModel")


class _Tokenizer(_Part, tokenizer_pb2_grpc.TokenizerServiceServicer):
    Tokenize = unary("Tokenize")
    Detokenize = unary("Detokenize")


class _Admin(_Part, admin_pb2_grpc.AdminServiceServicer):
    GetServerInfo = unary("GetServerInfo")
    GetLoad = unary("GetLoad")
    Drain = unary("Drain")
    ListPolicies = unary("ListPolicies")
    SetPolicy = unary("SetPolicy")
    SetPartition = unary("SetPartition")

    def WatchLoad(
        self, request: admin_pb2.WatchLoadRequest, context: grpc.ServicerContext
    ) -> Iterator[admin_pb2.WatchLoadResponse]:
        self.server.note(request, context)
        context.add_callback(self.server.left.set)
        waiting = 0
        while context.is_active():
            waiting += 1
            yield admin_pb2.WatchLoadResponse(load=admin_pb2.Load(waiting=waiting))


def event(sequence: int, **kind: Any) -> generation_pb2.GenerateStreamResponse:
    return generation_pb2.GenerateStreamResponse(sequence=sequence, **kind)


def accepted() -> generation_pb2.GenerateStreamResponse:
    return event(0, accepted=generation_pb2.Accepted(request_id="r1", model="tiny", prompt_tokens=3))


def token(sequence: int, text: str, index: int = 0) -> generation_pb2.GenerateStreamResponse:
    return event(sequence, token=generation_pb2.Token(index=index, text=text, token_ids=[sequence]))


def whole(*texts: str) -> Events:
    """An answer of one sample, from its acceptance to its summary."""
    yield accepted()
    for sequence, text in enumerate(texts, 1):
        yield token(sequence, text)
    finish = generation_pb2.Finish(reason=generation_pb2.FINISH_REASON_STOP, stop_token_id=2)
    yield event(len(texts) + 1, finished=generation_pb2.Finished(index=0, finish=finish))
    usage = generation_pb2.Usage(prompt_tokens=3, output_tokens=len(texts))
    timings = generation_pb2.Timings(queue=0.1, prefill=0.2, time_to_first_token=0.3, decode=0.4)
    yield event(len(texts) + 2, summary=generation_pb2.Summary(usage=usage, timings=timings))


def until_left(_generation: generation_pb2.Generation, context: grpc.ServicerContext) -> Events:
    """Says something, then goes on for as long as the client is there."""
    yield accepted()
    sequence = 0
    over = threading.Event()
    context.add_callback(over.set)
    while not over.is_set():
        sequence += 1
        yield token(sequence, "x")


def silent(_generation: generation_pb2.Generation, context: grpc.ServicerContext) -> Events:
    """Accepts, and then nothing until the client goes."""
    yield accepted()
    over = threading.Event()
    context.add_callback(over.set)
    over.wait(PATIENCE_S)


def refuse(
    context: grpc.ServicerContext,
    code: grpc.StatusCode,
    reason: str,
    *,
    metadata: dict[str, str] | None = None,
    violations: dict[str, str] | None = None,
    retry_after_s: int | None = None,
) -> NoReturn:
    """Ends the RPC as a semipd server does: google.rpc.Status in the trailers."""
    details: list[Message] = [error_details_pb2.ErrorInfo(reason=reason, domain="semipd", metadata=metadata or {})]
    if violations:
        entries = [error_details_pb2.BadRequest.FieldViolation(field=f, description=d) for f, d in violations.items()]
        details.append(error_details_pb2.BadRequest(field_violations=entries))
    if retry_after_s is not None:
        details.append(error_details_pb2.RetryInfo(retry_delay=duration_pb2.Duration(seconds=retry_after_s)))
    status = status_pb2.Status(code=code.value[0], message=f"refused: {reason}")
    for detail in details:
        status.details.add().Pack(detail)
    context.abort_with_status(rpc_status.to_status(status))
