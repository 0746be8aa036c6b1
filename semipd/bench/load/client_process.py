"""One load process: sends its share of the requests, each at its time, and writes down what comes back.

`drive` runs it as `python -m semipd.bench.load.client_process`. Everything that can be done before the start is done
before; afterwards a token costs two appends to a list beside what the protocol's library takes.
"""

from __future__ import annotations

import asyncio
import gc
import os
import sys
import time
from collections.abc import Callable, Iterable
from itertools import pairwise

import uvloop

from semipd.bench.arrivals import TraceArrival
from semipd.bench.errors import CommandError
from semipd.bench.load.job import Done, Job, LoadFailed, Message, Ready, Start, Tick, line_of, parsed
from semipd.bench.scoring.records import UNFINISHED, Outcome, RequestRecord
from semipd.bench.scoring.score import Distribution, distribution
from semipd.bench.scoring.validity import ClientUse
from semipd.bench.targets.base import PromptRequest, ResponseStream, Target, draw_prompt
from semipd.bench.targets.registry import open_target

TICK_S = 0.5
"""Seconds between two reports of progress."""

BEAT_S = 0.05
"""The timer by which the lag of the event loop is measured."""


class SentRequest:
    """A request that was sent, and its answer as far as it has come."""

    __slots__ = ("arrival", "done_s", "scheduled_s", "sent_s", "stream")

    def __init__(self, arrival: TraceArrival, scheduled_s: float, sent_s: float) -> None:
        self.arrival = arrival
        self.scheduled_s = scheduled_s
        self.sent_s = sent_s
        self.stream = ResponseStream()
        self.done_s: float | None = None

    def record(self, start: float, end_s: float) -> RequestRecord:
        """`end_s`: when the run ended, for what had not."""
        entry, stream = self.arrival.entry, self.stream
        outcome, reason = (Outcome.FAILED, UNFINISHED) if self.done_s is None else stream.outcome(entry.output_len)
        gaps = tuple(after - before for before, after in pairwise(stream.times))
        return RequestRecord(
            index=self.arrival.index,
            prompt_len=entry.prompt_len,
            output_len=entry.output_len,
            ttft_slo_s=entry.ttft_slo_s,
            tpot_slo_s=entry.tpot_slo_s,
            scheduled_s=self.scheduled_s,
            sent_s=self.sent_s,
            outcome=outcome,
            reason=reason,
            tokens=stream.tokens(),
            first_s=stream.times[0] - start if stream.times else None,
            last_s=stream.times[-1] - start if stream.times else None,
            done_s=end_s if self.done_s is None else self.done_s,
            queue_s=stream.queue_s,
            largest_gap_s=max(gaps, default=None),
            gaps_s=gaps,
            counts=() if all(count == 1 for count in stream.counts) else tuple(stream.counts),
        )


class LoadClient:
    """Holds what was sent. Times with an `_s` are seconds after `start`."""

    def __init__(self, job: Job, target: Target, tell: Callable[[Message], None]) -> None:
        self._job = job
        self._target = target
        self._tell = tell
        self._sent: list[SentRequest] = []
        self._ended = 0
        self._lags: list[float] = []
        self._start = 0.0
        self._running: set[asyncio.Task[None]] = set()
        arrivals = [*job.open, *(arrival for chain in job.chains for arrival in chain)]
        self._prepared = {arrival.index: self._prepare(arrival) for arrival in arrivals}

    def _prepare(self, arrival: TraceArrival) -> bytes:
        entry, settings = arrival.entry, self._job.settings
        prompt = draw_prompt(settings.seed, arrival.index, entry.prompt_len, self._job.target.vocab_size)
        return self._target.prepare(PromptRequest(prompt, entry.output_len, entry.ttft_slo_s, entry.tpot_slo_s))

    async def run(self, start: float) -> Done:
        self._start = start
        self._prepared_is_kept()
        settings = self._job.settings
        end_s = settings.duration_s + (settings.drain_s if self._job.open else 0.0)
        helpers = [asyncio.create_task(self._beat()), asyncio.create_task(self._report())]
        await self._until(0.0)
        cpu, began = time.process_time(), time.monotonic()
        chains = [asyncio.create_task(self._chain(chain)) for chain in self._job.chains]
        await self._send_all()
        if self._running:
            await asyncio.wait(self._running, timeout=max(0.0, self._start + end_s - time.monotonic()))
        if chains:
            await asyncio.wait(chains, timeout=max(0.0, self._start + settings.duration_s - time.monotonic()))
        cpu_s, wall_s = time.process_time() - cpu, time.monotonic() - began
        ended_s = time.monotonic() - start
        given_up = [*self._running, *chains, *helpers]
        for task in given_up:
            task.cancel()
        records = tuple(sent.record(start, ended_s) for sent in self._sent)
        await asyncio.gather(*given_up, return_exceptions=True)
        return Done(records, self._use(records, wall_s, cpu_s))

    def _prepared_is_kept(self) -> None:
        """Keeps the collector away from what exists so far: none of it becomes garbage, and a search would delay a
        send."""
        gc.collect()
        gc.freeze()

    def _use(self, records: Iterable[RequestRecord], wall_s: float, cpu_s: float) -> ClientUse:
        lateness = distribution(record.sent_s - record.scheduled_s for record in records)
        return ClientUse(
            requests=len(self._sent),
            tokens=self._tokens(),
            wall_s=wall_s,
            cpu_s=cpu_s,
            lateness_s=lateness or Distribution(0, 0.0, 0.0, 0.0, 0.0, 0.0),
            loop_lag_s=distribution(self._lags),
        )

    async def _send_all(self) -> None:
        """Open loop: nothing here waits for an answer."""
        for arrival in self._job.open:
            await self._until(arrival.at_s)
            task = asyncio.create_task(self._one(arrival, arrival.at_s))
            self._running.add(task)
            task.add_done_callback(self._running.discard)

    async def _chain(self, chain: Iterable[TraceArrival]) -> None:
        scheduled_s = None
        for arrival in chain:
            if scheduled_s is None:
                await self._until(arrival.at_s)
            await self._one(arrival, arrival.at_s if scheduled_s is None else scheduled_s)
            scheduled_s = time.monotonic() - self._start

    async def _one(self, arrival: TraceArrival, scheduled_s: float) -> None:
        prepared = self._prepared.pop(arrival.index)
        sent = SentRequest(arrival, scheduled_s, time.monotonic() - self._start)
        self._sent.append(sent)
        await self._target.send(prepared, sent.stream)
        sent.done_s = time.monotonic() - self._start
        self._ended += 1

    async def _until(self, at_s: float) -> None:
        """Timers of the loop may fire a millisecond early or late: late is measured, early would not be Poisson."""
        while (left := self._start + at_s - time.monotonic()) > 0:  # noqa: ASYNC110
            await asyncio.sleep(left)

    async def _beat(self) -> None:
        await self._until(0.0)
        while True:
            due = time.monotonic() + BEAT_S
            await asyncio.sleep(BEAT_S)
            self._lags.append(max(0.0, time.monotonic() - due))

    async def _report(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            self._tell(Tick(len(self._sent), self._ended, self._tokens()))

    def _tokens(self) -> int:
        return sum(len(sent.stream.times) for sent in self._sent)


async def serve_job(read: Callable[[], Message], tell: Callable[[Message], None]) -> None:
    job = read()
    assert isinstance(job, Job)
    async with open_target(job.settings) as target:
        load = LoadClient(job, target, tell)
        await target.connect()
        tell(Ready(len(job.open) + len(job.chains)))
        start = await asyncio.to_thread(read)
        assert isinstance(start, Start)
        tell(await load.run(start.at))


def main() -> None:
    # the messages' own descriptor: nothing that a library prints may get between them
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)

    def tell(message: Message) -> None:
        try:
            out.write(line_of(message))
            out.flush()
        except BrokenPipeError:
            os._exit(1)  # the parent was killed: whoever asked for this load is gone

    def read() -> Message:
        line = sys.stdin.buffer.readline()
        if not line:
            sys.exit(0)  # the parent is gone, or gave the run up
        message: Message = parsed(line)
        return message

    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(serve_job(read, tell))
    except CommandError as error:
        tell(LoadFailed(type(error).__name__, str(error)))
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
