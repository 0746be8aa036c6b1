"""Stands between gRPC and the services: parses requests, and tells whatever a service raises in gRPC's terms."""

from __future__ import annotations

import asyncio
import inspect
import traceback
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import Any, TypeAlias

import grpc
import structlog
from google.protobuf.message import DecodeError, Message

from semipd.core.errors import InternalError, InvalidRequest, RequestError, Unsupported
from semipd.wire.status import code_of, pushback, status_of

log = structlog.get_logger()

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
Behaviour: TypeAlias = "Callable[[Any, Context], Awaitable[Any]]"
Continuation: TypeAlias = "Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]]"

CODES = {code.value[0]: code for code in grpc.StatusCode}

request_id: ContextVar[str] = ContextVar("request_id", default="")
"""Id of the request that this RPC carries, as soon as it is known; errors name it."""


async def refuse(context: Context, error: RequestError) -> None:
    """Ends the RPC with the error. It never returns."""
    number = request_id.get()
    status = status_of(error, {"request_id": number} if number else None)
    trailers = (("grpc-status-details-bin", status.SerializeToString()), *pushback(error))
    await context.abort(CODES[code_of(error)], status.message, trailers)


class ErrorInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[misc, unused-ignore]
    """Wraps every method that takes one message. Its services raise RequestErrors; anything else is a bug."""

    async def intercept_service(
        self, continuation: Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> Handler:
        method = handler_call_details.method
        handler = await continuation(handler_call_details)
        if handler is None:
            return refusing_handler(Unsupported("this server has no such method"))
        # typeshed knows no attributes of handlers; grpc documents them.
        wrapped: Any = handler
        if wrapped.request_streaming:
            return handler
        if wrapped.response_streaming:
            if inspect.isasyncgenfunction(wrapped.unary_stream):
                return handler
            return grpc.unary_stream_rpc_method_handler(  # type: ignore[return-value, unused-ignore]
                self._guarded(method, wrapped.unary_stream, wrapped.request_deserializer),
                request_deserializer=None,
                response_serializer=wrapped.response_serializer,
            )
        return grpc.unary_unary_rpc_method_handler(  # type: ignore[return-value, unused-ignore]
            self._guarded(method, wrapped.unary_unary, wrapped.request_deserializer),
            request_deserializer=None,
            response_serializer=wrapped.response_serializer,
        )

    def _guarded(self, method: str, behaviour: Behaviour, parse: Callable[[bytes], Message]) -> Behaviour:
        async def answer(frame: bytes, context: Context) -> Any:
            try:
                try:
                    request = parse(frame)
                except DecodeError:
                    raise InvalidRequest.of("", "the request is not the message that the method takes") from None
                return await behaviour(request, context)
            except RequestError as error:
                await refuse(context, error)
            except (asyncio.CancelledError, grpc.aio.AbortError):
                raise
            except Exception as error:
                if context.cancelled():  # writing to a client that has left
                    raise asyncio.CancelledError from error
                _log_bug(method, error)
                await refuse(context, InternalError("the server failed on this request; its log has more"))

        return answer


def _log_bug(method: str, error: Exception) -> None:
    """Logs where it happened. An exception's own text may hold what a client wrote, so it stays out."""
    frames = traceback.extract_tb(error.__traceback__)
    where = [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames]
    log.error("a request failed unexpectedly", method=method, request_id=request_id.get(), error=type(error).__name__,
              where=where)  # fmt: skip


def refusing_handler(error: RequestError) -> Handler:
    """Returns a handler, for any kind of method, that refuses before it reads a message."""

    async def refusal(_requests: Any, context: Context) -> None:
        await refuse(context, error)

    handler: Handler = grpc.stream_stream_rpc_method_handler(refusal)  # type: ignore[arg-type, assignment, unused-ignore]
    return handler
