"""A load process sends each request at its time, whatever the target does, and says how well it kept to it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import pytest

from semipd.bench.arrivals import TraceArrival
from semipd.bench.load.client_process import LoadClient
from semipd.bench.load.job import Done, Job, LoadFailed, Message, Start, Tick, line_of, parsed
from semipd.bench.scoring.records import UNFINISHED, Outcome
from semipd.bench.scoring.target_info import TargetInfo
from semipd.bench.scoring.timeline import LoadSample
from semipd.bench.scoring.validity import problems
from semipd.bench.settings import RunSettings
from semipd.bench.targets.base import PromptRequest, ResponseStream, Target
from semipd.bench.traces import TraceEntry

INFO = TargetInfo("grpc", "m", 100, None, "", {})
ENTRY = TraceEntry(4, 2, 1.0, 1.0)


class ScriptedTarget(Target):
    """`answer` is given each request as it is sent."""

    def __init__(self, answer: Callable[[PromptRequest, ResponseStream], None], hang: bool = False) -> None:
        self._answer = answer
        self._hang = hang
        self._asked: dict[bytes, PromptRequest] = {}

    async def __aexit__(self, *_: object) -> None: ...

    async def describe(self) -> TargetInfo:
        return INFO

    async def connect(self) -> None: ...

    def prepare(self, asked: PromptRequest) -> bytes:
        key = str(len(self._asked)).encode()
        self._asked[key] = asked
        return key

    async def send(self, prepared: bytes, stream: ResponseStream) -> None:
        self._answer(self._asked[prepared], stream)
        if self._hang:
            await asyncio.Event().wait()

    async def load(self) -> LoadSample | None:
        return None


def job(due: list[TraceArrival], duration_s: float, chains: tuple[tuple[TraceArrival, ...], ...] = ()) -> Job:
    settings = RunSettings("grpc://nowhere:1", "chat", 1.0, duration_s, drain_s=0.0)
    return Job(settings, INFO, tuple(due), chains)


async def played(given: Job, target: Target) -> Done:
    heard: list[Message] = []
    return await LoadClient(given, target, heard.append).run(time.monotonic())


def whole(asked: PromptRequest, stream: ResponseStream) -> None:
    """All tokens at once."""
    for _ in range(asked.output_len):
        stream.times.append(time.monotonic())
        stream.counts.append(1)


async def test_a_target_that_never_answers_does_not_slow_the_arrivals() -> None:
    due = [TraceArrival(i, i * 0.002, ENTRY) for i in range(50)]
    done = await played(job(due, 0.1), ScriptedTarget(lambda *_: None, hang=True))
    assert [r.index for r in done.records] == list(range(50))
    assert all(r.sent_s >= r.scheduled_s for r in done.records)
    assert {(r.outcome, r.reason) for r in done.records} == {(Outcome.FAILED, UNFINISHED)}


async def test_what_an_answer_becomes() -> None:
    def answer(asked: PromptRequest, stream: ResponseStream) -> None:
        assert len(asked.prompt) == 4
        assert max(asked.prompt) < 100
        now = time.monotonic()
        stream.times += [now, now + 0.25, now + 1.0]
        stream.counts += [1, 2, 1]
        stream.queue_s = 0.125

    entry = TraceEntry(4, 4, 1.0, 1.0)
    (record,) = (await played(job([TraceArrival(0, 0.0, entry)], 0.01), ScriptedTarget(answer))).records
    assert record.outcome is Outcome.DONE
    assert record.tokens == 4
    assert record.gaps_s == pytest.approx((0.25, 0.75))
    assert record.counts == (1, 2, 1)
    assert record.largest_gap_s == pytest.approx(0.75)
    assert record.tpot_s == pytest.approx(1.0 / 3)
    assert record.queue_s == 0.125


async def test_a_client_that_falls_behind_makes_its_run_invalid() -> None:
    """Each send holds the process up for three times the gap between arrivals."""
    due = [TraceArrival(i, i * 0.005, ENTRY) for i in range(20)]

    def hold_up(asked: PromptRequest, stream: ResponseStream) -> None:
        time.sleep(0.015)
        whole(asked, stream)

    done = await played(job(due, 0.1), ScriptedTarget(hold_up))
    assert done.use.lateness_s.p99 > 0.02
    assert any("fell behind" in problem for problem in problems(done.records, done.use.lateness_s, [done.use]))


async def test_each_of_a_chain_is_sent_when_the_one_before_it_has_ended_until_the_end() -> None:
    chain = tuple(TraceArrival(i, 0.0, ENTRY) for i in range(100_000, 100_003))
    done = await played(job([], 0.05, (chain,)), ScriptedTarget(whole))
    assert [r.index for r in done.records] == [100_000, 100_001, 100_002]
    assert all(after.sent_s >= before.done_s for before, after in zip(done.records, done.records[1:], strict=False))
    hung = await played(job([], 0.05, (chain,)), ScriptedTarget(whole, hang=True))
    assert [(r.index, r.reason) for r in hung.records] == [(100_000, UNFINISHED)]


async def test_messages_between_processes_come_back_as_they_were() -> None:
    given = job([TraceArrival(0, 0.5, ENTRY)], 1.0, ((TraceArrival(1, 0.0, ENTRY),),))
    done = await played(job([TraceArrival(0, 0.0, ENTRY)], 0.01), ScriptedTarget(whole))
    for message in (given, Start(12.5), Tick(1, 2, 3), LoadFailed("Unreachable", "nobody\nthere")):
        assert line_of(message).count(b"\n") == 1
        assert parsed(line_of(message)) == message
    back = parsed(line_of(done))
    assert line_of(back) == line_of(done)
    with pytest.raises(ValueError, match="not a message"):
        parsed(b'["Other", {}]\n')
