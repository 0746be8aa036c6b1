"""Drives a target with requests that arrive at given times: the parent of the load processes."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace

from semipd.bench import errors
from semipd.bench.arrivals import TraceArrival
from semipd.bench.errors import CommandError, RunFailed
from semipd.bench.load.job import LINE_LIMIT, Done, Job, LoadFailed, Message, Ready, Start, Tick, line_of, parsed
from semipd.bench.scoring.records import RequestRecord
from semipd.bench.scoring.target_info import TargetInfo
from semipd.bench.scoring.timeline import LoadSample
from semipd.bench.scoring.validity import ClientUse
from semipd.bench.settings import RunSettings, default_clients
from semipd.bench.targets.base import Target
from semipd.bench.targets.registry import open_target

SAMPLE_S = 0.5
"""Seconds between two looks at the target's load."""

START_S = 0.25
"""Seconds from the moment at which every load process is ready to the start."""

READY_S = 300.0
"""Seconds that a load process has to import, to connect and to write its requests down."""

GRACE_S = 60.0
"""Seconds, beyond the time of its last request, that a load process has to hand over its records."""


@dataclass(frozen=True, slots=True)
class Progress:
    """The progress of a run."""

    elapsed_s: float
    due: int
    """Requests in all."""
    sent: int
    ended: int
    messages: int
    """Messages with tokens so far."""


@dataclass(frozen=True, slots=True)
class DriveResult:
    """The records of a run, and what was seen meanwhile."""

    target: TargetInfo
    records: tuple[RequestRecord, ...]
    """Sorted by index: one for each arrival, and one for each request of a chain that was sent."""
    clients: tuple[ClientUse, ...]
    timeline: tuple[LoadSample, ...]
    start_s: float
    """The moment, on time.monotonic(), from which all times in the records count."""


async def look(settings: RunSettings) -> TargetInfo:
    """Returns what the target says about itself. Raises InputError, Unreachable or RunFailed where it can't be
    driven."""
    async with open_target(settings) as target:
        return await target.describe()


async def drive(
    settings: RunSettings,
    target: TargetInfo,
    due: Sequence[TraceArrival],
    progress: Callable[[Progress], None] | None = None,
    chains: Sequence[Sequence[TraceArrival]] = (),
) -> DriveResult:
    """Sends each of `due` at its time, whatever the target does, and waits settings.drain_s for what is late.

    Of each chain the first is sent at its time and each other when the one before it has ended, until
    settings.duration_s; what still runs of a chain then is given up. Indexes are unique over both.

    Raises RunFailed where a load process dies, Unreachable where it can't connect.
    """
    count = settings.clients if settings.clients is not None else default_clients()
    if count < 1:
        raise errors.InputError(f"--clients must be at least 1, not {count}")
    jobs = [
        Job(settings, target, tuple(due[i::count]), tuple(tuple(chain) for chain in chains[i::count]))
        for i in range(min(count, max(1, len(due) + len(chains))))
    ]
    async with open_target(settings) as watched, _processes(jobs) as processes:
        await asyncio.gather(*(process.ready() for process in processes))
        start = time.monotonic() + START_S
        board = ProgressBoard(start, len(due), progress)
        sampling = asyncio.create_task(_sample(watched, start))
        try:
            done = await asyncio.gather(*(p.finish(start, board, i) for i, p in enumerate(processes)))
        finally:
            sampling.cancel()
        timeline = await sampling
    records = sorted((record for one in done for record in one.records), key=lambda r: r.index)
    return DriveResult(target, tuple(records), tuple(one.use for one in done), timeline, start)


class ProgressBoard:
    """The last Tick of each load process, added up for who watches."""

    def __init__(self, start: float, due: int, progress: Callable[[Progress], None] | None) -> None:
        self._start = start
        self._due = due
        self._progress = progress
        self._ticks: dict[int, Tick] = {}

    def tell(self, process: int, tick: Tick) -> None:
        self._ticks[process] = tick
        if self._progress is not None:
            ticks = self._ticks.values()
            sent, ended, tokens = (sum(getattr(t, name) for t in ticks) for name in ("sent", "ended", "tokens"))
            self._progress(Progress(time.monotonic() - self._start, self._due, sent, ended, tokens))


class LoadProcess:
    """The parent's end of a load process."""

    def __init__(self, job: Job, process: asyncio.subprocess.Process) -> None:
        self._job = job
        self._process = process

    async def ready(self) -> None:
        await self._tell(self._job)
        async with asyncio.timeout(READY_S):
            said = await self._hear()
        assert isinstance(said, Ready)

    async def finish(self, start: float, board: ProgressBoard, number: int) -> Done:
        await self._tell(Start(start))
        settings = self._job.settings
        try:
            async with asyncio.timeout(START_S + settings.duration_s + settings.drain_s + GRACE_S):
                while isinstance(said := await self._hear(), Tick):
                    board.tell(number, said)
                await self._process.wait()  # it ends by itself: killing what is about to end confuses its watcher
        except TimeoutError as error:
            raise RunFailed("a load process did not end in time") from error
        assert isinstance(said, Done)
        return said

    async def _tell(self, message: Message) -> None:
        assert self._process.stdin is not None
        with suppress(ConnectionError):  # it is dead: what it said last is still to be read
            self._process.stdin.write(line_of(message))
            await self._process.stdin.drain()

    async def _hear(self) -> Message:
        assert self._process.stdout is not None
        line = await self._process.stdout.readline()
        if not line.endswith(b"\n"):
            raise RunFailed(f"a load process ended with code {await self._process.wait()} before it was done")
        said: Message = parsed(line)
        if isinstance(said, LoadFailed):
            raise _raised(said)
        return said


def _raised(said: LoadFailed) -> CommandError:
    kind = getattr(errors, said.kind, RunFailed)
    assert issubclass(kind, CommandError)
    return kind(said.message)


@asynccontextmanager
async def _processes(jobs: Sequence[Job]) -> AsyncIterator[list[LoadProcess]]:
    """Gone when left, whatever happened."""
    children: list[asyncio.subprocess.Process] = []
    try:
        for _ in jobs:
            children.append(
                await asyncio.create_subprocess_exec(
                    *(sys.executable, "-m", "semipd.bench.load.client_process"),
                    stdin=asyncio.subprocess.PIPE,
                    stdout=asyncio.subprocess.PIPE,
                    limit=LINE_LIMIT,
                )
            )
        yield [LoadProcess(job, child) for job, child in zip(jobs, children, strict=True)]
    finally:
        for child in children:
            if child.returncode is None:
                child.kill()
        for child in children:
            await child.wait()


async def _sample(target: Target, start: float) -> tuple[LoadSample, ...]:
    """Samples the load until it is cancelled, or until the target does not tell its load."""
    seen: list[LoadSample] = []
    due = start
    with suppress(asyncio.CancelledError):
        while True:
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            sample = await target.load()
            if sample is None:
                break
            seen.append(replace(sample, at_s=time.monotonic() - start))
            due = max(due + SAMPLE_S, time.monotonic())
    return tuple(seen)
