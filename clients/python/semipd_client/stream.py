"""Streams for programs with threads."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Generic, Self, TypeVar

import grpc

from semipd_client._proto.semipd.v1 import generation_pb2
from semipd_client.errors import Cancelled, error_of
from semipd_client.events import Event, Token
from semipd_client.partial_answer import PartialAnswer
from semipd_client.results import Generation

M = TypeVar("M")
V = TypeVar("V")


class Responses(Generic[M, V]):
    """Reads a streaming RPC, once. Leaving the iteration (or the `with`) before its end cancels the RPC."""

    def __init__(self, call: grpc._CallIterator[M], read: Callable[[M], V]) -> None:
        self._call = call
        self._read = read
        self._over = False
        self._closed = False

    def __iter__(self) -> Generator[V, None, None]:
        """Yields the answers; none if the RPC is over. Raises Cancelled if it was left before its end."""
        if self._closed and not self._over:
            raise Cancelled("the stream was left before its end")
        try:
            for message in self._call:
                yield self._read(message)
            self._over = True
        except grpc.RpcError as error:
            raise error_of(error) from error
        finally:
            self.close()

    def close(self) -> None:
        """Cancels what is still under way."""
        self._closed = True
        self._call.cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Stream(PartialAnswer):
    """An answer as it is made: iterate over its text, or over its `events()`; once.

    Leaving the iteration before its end, by break, by an exception or by `close`, cancels the request.
    """

    def __init__(self, call: grpc._CallIterator[generation_pb2.GenerateStreamResponse]) -> None:
        super().__init__()
        self._responses = Responses(call, self._take)

    def __iter__(self) -> Generator[str, None, None]:
        """Yields the text of the first sample, piece by piece as it comes."""
        try:
            for event in self.events():
                if isinstance(event, Token) and event.index == 0 and event.text:
                    yield event.text
        finally:
            self.close()

    def events(self) -> Generator[Event, None, None]:
        """Yields every event, of all samples. Raises SemipdClientError."""
        try:
            for event in self._responses:
                if event is not None:
                    yield event
        finally:
            self.close()
        self._whole()

    def result(self) -> Generation:
        """Reads the rest and returns the whole answer. Raises SemipdClientError."""
        for _ in self.events():
            pass
        return self._whole()

    def close(self) -> None:
        """Cancels the request if it is under way."""
        self._responses.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
