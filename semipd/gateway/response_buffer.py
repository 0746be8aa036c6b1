"""Keeps what the coordinator sent for one request until its client is told, merged, so that it stays bounded.

A slow reader finds one event for each sample, with all tokens since it last looked: max_tokens at most.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from semipd.core.errors import InternalError, Reason, RequestError, Unavailable
from semipd.gateway.output_sample import OutputSample, TokensMissing
from semipd.internal.v1 import gateway_pb2 as gw

StopFound = Callable[[int, int], None]
"""A callback that gets a sample's index and the number of output tokens that count."""


class ResponseBuffer:
    """Takes messages from the link and gives them to the handler of the client's RPC. Both run in the event loop."""

    def __init__(self, samples: Sequence[OutputSample], stop_found: StopFound) -> None:
        self.samples = samples
        self.admitted = False
        self._stop_found = stop_found
        self._error: RequestError | None = None
        self._alive = len(samples)
        self._dirty: list[OutputSample] = []
        self._waiter: asyncio.Future[None] | None = None
        self._all_at_once = False

    # --- for the link --------------------------------------------------------------------------------------------

    def admit(self) -> None:
        """The coordinator has accepted the request."""
        self.admitted = True
        self._wake()

    def fail(self, error: RequestError) -> None:
        """Ends the request with an error, without further tokens. The first failure counts."""
        if not self.over:
            self._error = error
            self._wake()

    def deliver(self, delta: gw.Delta) -> None:
        """Takes a delta. Raises InternalError if it can't be one of this request, which is to fail with that."""
        try:
            sample = self.samples[delta.index]
            if sample.over:
                return
            was_finished = sample.finish is not None
            if sample.take(delta) and not was_finished and sample not in self._dirty:
                self._dirty.append(sample)
        except (TokensMissing, IndexError) as error:
            raise InternalError("tokens of this request were lost inside the server") from error
        if sample.over:
            self._alive -= 1
        elif sample.finish is not None and not was_finished:
            self._stop_found(sample.index, sample.output_tokens)
        if self._waiter is not None and (not self._alive or (self._dirty and not self._all_at_once)):
            self._wake()

    def _wake(self) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    # --- for the handler -----------------------------------------------------------------------------------------

    @property
    def over(self) -> bool:
        """The coordinator has nothing more to say about the request."""
        return self._alive == 0 or self._error is not None

    @property
    def output_tokens(self) -> int:
        return sum(sample.output_tokens for sample in self.samples)

    async def wait_admitted(self, timeout_s: float) -> None:
        """Waits until the request is accepted. Raises the RequestError with which it is refused."""
        try:
            async with asyncio.timeout(timeout_s):
                while not self.admitted and self._error is None:
                    await self._wait()
        except TimeoutError:
            raise Unavailable("the coordinator does not answer", reason=Reason.NOT_READY) from None
        # Accepted and failed in one breath: nothing was told yet, so the client may as well hear it as a refusal.
        self._raise_error()

    async def changed_samples(self) -> list[OutputSample]:
        """Waits for samples with something to tell and returns them. Empty: the request is over.

        Raises the error that the request failed with.
        """
        while not self._dirty:
            self._raise_error()
            if not self._alive:
                return []
            await self._wait()
        dirty, self._dirty = self._dirty, []
        return dirty

    async def wait_completed(self) -> None:
        """Waits until the request is over. Raises the error that it failed with."""
        self._all_at_once = True
        while self._alive:
            self._raise_error()
            await self._wait()

    def _raise_error(self) -> None:
        if self._error is not None:
            raise self._error

    async def _wait(self) -> None:
        self._waiter = asyncio.get_running_loop().create_future()
        await self._waiter
