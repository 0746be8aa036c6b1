"""Streams for programs with an event loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from typing import Any, Generic, Self, TypeVar

import grpc
import grpc.aio

from semipd_client._proto.semipd.v1 import generation_pb2
from semipd_client.errors import Cancelled, error_of
from semipd_client.events import Event, Token
from semipd_client.partial_answer import PartialAnswer
from semipd_client.results import Generation

M = TypeVar("M")
V = TypeVar("V")


class AsyncResponses(Generic[M, V]):
    """Reads a streaming RPC, once. Leaving the iteration (or the `async with`) before its end cancels the RPC."""

    def __init__(self, call: grpc.aio.UnaryStreamCall[Any, M], read: Callable[[M], V]) -> None:
        self._call = call
        self._read = read
        self._over = False
        self._closed = False

    async def __aiter__(self) -> AsyncGenerator[V, None]:
        """Yields the answers; none if the RPC is over. Raises Cancelled if it was left before its end."""
        if self._closed and not self._over:
            raise Cancelled("the stream was left before its end")
        try:
            async for message in self._call:
                yield self._read(message)
            self._over = True
        except grpc.RpcError as error:
            raise error_of(error) from error
        except asyncio.CancelledError:
            # grpc raises it as well where `close` ended the RPC under a reader whom nobody cancelled.
            task = asyncio.current_task()
            if not self._closed or (task is not None and task.cancelling()):
                raise
            raise Cancelled("the stream was left before its end") from None
        finally:
            self.close()

    def close(self) -> None:
        """Cancels what is still under way."""
        self._closed = True
        self._call.cancel()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()


class AsyncStream(PartialAnswer):
    """An answer as it is made: iterate over its text, or over its `events()`; once.

    Leaving the iteration before its end, by break, by an exception or by `close`, cancels the request: at once inside
    `async with`, and when the event loop finalises the iterator without it.
    """

    def __init__(self, call: grpc.aio.UnaryStreamCall[Any, generation_pb2.GenerateStreamResponse]) -> None:
        super().__init__()
        self._responses = AsyncResponses(call, self._take)

    async def __aiter__(self) -> AsyncGenerator[str, None]:
        """Yields the text of the first sample, piece by piece as it comes."""
        try:
            async for event in self.events():
                if isinstance(event, Token) and event.index == 0 and event.text:
                    yield event.text
        finally:
            self.close()

    async def events(self) -> AsyncGenerator[Event, None]:
        """Yields every event, of all samples. Raises SemipdClientError."""
        try:
            async for event in self._responses:
                if event is not None:
                    yield event
        finally:
            self.close()
        self._whole()

    async def result(self) -> Generation:
        """Reads the rest and returns the whole answer. Raises SemipdClientError."""
        async for _ in self.events():
            pass
        return self._whole()

    def close(self) -> None:
        """Cancels the request if it is under way."""
        self._responses.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()
