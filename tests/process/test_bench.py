"""`semipd bench` as a command, against servers in processes of their own."""

from __future__ import annotations

import asyncio
import hashlib
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest

from semipd.bench.scoring.report import read_report
from semipd.bench.targets.sink import Sink, SinkAdmin, SinkGeneration, SinkModel
from semipd.bench.traces import TraceEntry, write_trace
from semipd.v1 import admin_pb2_grpc, generation_pb2_grpc, model_pb2_grpc
from support.openai_server import MODEL, OpenAiServer
from support.server import RunningServer, until

QUICK = ["--rate", "20", "--duration", "1", "--seed", "1"]


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "semipd.bench", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)


async def bench_beside(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs `bench` while servers of this process answer."""
    return await asyncio.to_thread(bench, *arguments)


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    path = tmp_path / "small.jsonl"
    write_trace([TraceEntry(8, 5, 5.0, 1.0), TraceEntry(16, 3, 5.0, 1.0)], path)
    return path


@pytest.fixture(scope="module")
def sink() -> Iterator[Sink]:
    with Sink(pace_s=0.01) as running:
        yield running


def test_a_run_is_scored_printed_and_saved_with_where_it_comes_from(sink: Sink, trace: Path, tmp_path: Path) -> None:
    out = tmp_path / "out" / "report.json"
    done = bench(
        *("run", "--target", f"grpc://{sink.address}", "--trace", str(trace), *QUICK, "--clients", "2"),
        *("--json", str(out), "--plot", str(tmp_path / "plots")),
    )
    assert done.returncode in (0, 1), done.stderr  # 1: this machine was too busy, and the run says so
    assert "TTFT" in done.stdout
    report = read_report(out)
    assert report.valid == (done.returncode == 0)
    assert report.score.sent == report.score.done == len(report.records) > 0
    assert [r.index for r in report.records] == list(range(report.score.sent))
    assert [r.tokens for r in report.records[:4]] == [5, 3, 5, 3]
    assert report.score.itl_s is not None
    assert report.score.itl_s.count == sum(r.tokens - 1 for r in report.records)
    assert sum(client.requests for client in report.clients) == report.score.sent
    assert len(report.clients) == 2
    assert report.timeline
    assert (report.target.model, report.target.vocab_size) == ("sink", 1000)
    assert report.provenance.python
    assert report.settings.seed == 1
    assert (tmp_path / "plots" / "timeline.png").read_bytes().startswith(b"\x89PNG")


def test_the_same_seed_sends_the_same_requests_at_the_same_times(sink: Sink, trace: Path, tmp_path: Path) -> None:
    reports = []
    for clients in ("1", "2"):
        out = tmp_path / f"{clients}.json"
        bench(*("run", "--target", f"grpc://{sink.address}", "--trace", str(trace), *QUICK), *("--clients", clients),
              *("--json", str(out), "--gaps"))  # fmt: skip
        reports.append(read_report(out))
    first, second = ([(r.index, r.scheduled_s, r.prompt_len) for r in report.records] for report in reports)
    assert first == second
    assert all(len(r.gaps_s) == r.tokens - 1 for r in reports[0].records)


def test_the_traces_are_written(tmp_path: Path) -> None:
    done = bench("traces", "--out", str(tmp_path / "new" / "folder"))
    assert done.returncode == 0, done.stderr
    written = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in (tmp_path / "new/folder").iterdir()}
    assert written == {
        "chat.jsonl": "c642515cc7c7cb21549994e21e4e32374915def8bb15458c25c031b9bf81380e",
        "long.jsonl": "22dd30cbbc2d5b5d0ea7196aa493635fdc722904abc7a177cf6656633db71a23",
        "mixed.jsonl": "71002f25c65456a656d36488d079206583ccfef6f911f195f2c2d7dc1e88a86a",
    }


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--target", "grpc://127.0.0.1:1", "--trace", "chat"], 3, "nobody answers"),
        (["--target", "openai+http://127.0.0.1:1/v1", "--model", "m", "--trace", "chat"], 3, "nobody answers"),
        (["--target", "grpc://127.0.0.1:1", "--trace", "/no/such/file"], 2, "no such trace file"),
        (["--target", "ftp://127.0.0.1:1", "--trace", "chat"], 2, "not a target"),
        (["--target", "openai+http://127.0.0.1:1/v1", "--trace", "chat"], 2, "--model"),
        (["--target", "grpc://127.0.0.1:1", "--trace", "chat", "--rate", "-1"], 2, "rate"),
        (["--target", "grpc://127.0.0.1:1", "--trace", "chat", "--json", "/dev/null/x.json"], 2, "/dev/null"),
        (["--target", "grpc://127.0.0.1:1"], 2, "--trace"),
    ],
)
def test_bad_input_gives_a_sentence_and_a_code(arguments: list[str], code: int, said: str) -> None:
    done = bench("run", *QUICK, *arguments)
    assert done.returncode == code
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_a_malformed_line_is_named(sink: Sink, trace: Path) -> None:
    trace.write_text(trace.read_text() + '{"prompt_len": 3}\n')
    done = bench("run", "--target", f"grpc://{sink.address}", "--trace", str(trace), *QUICK)
    assert done.returncode == 2
    assert f"{trace}, line 3: output_len is missing" in done.stderr


def test_requests_beyond_the_context_are_refused_before_the_run(sink: Sink, trace: Path) -> None:
    done = bench("run", "--target", f"grpc://{sink.address}", "--trace", str(trace), *QUICK, "--scale", "1000")
    assert done.returncode == 2
    assert "the context of sink ends at 16384" in done.stderr


class FailingGeneration(SinkGeneration):
    """Answers the probe, then nothing but one status."""

    def __init__(self, code: grpc.StatusCode) -> None:
        super().__init__(0.0, 0.0)
        self._code = code
        self._answered = 0

    async def GenerateStream(self, request: Any, context: Any) -> AsyncIterator[Any]:
        self._answered += 1
        if self._answered > 1:
            await context.abort(self._code, "out of order")
        async for event in super().GenerateStream(request, context):
            yield event


@asynccontextmanager
async def failing(code: grpc.StatusCode) -> AsyncIterator[str]:
    server = grpc.aio.server()
    generation = FailingGeneration(code)
    generation_pb2_grpc.add_GenerationServiceServicer_to_server(generation, server)
    model_pb2_grpc.add_ModelServiceServicer_to_server(SinkModel(), server)
    admin_pb2_grpc.add_AdminServiceServicer_to_server(SinkAdmin(generation), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"grpc://127.0.0.1:{port}"
    finally:
        await server.stop(None)


@pytest.mark.parametrize("code", [grpc.StatusCode.INTERNAL, grpc.StatusCode.RESOURCE_EXHAUSTED])
async def test_a_target_that_does_nothing_gives_no_report(code: grpc.StatusCode, trace: Path, tmp_path: Path) -> None:
    out = tmp_path / "report.json"
    async with failing(code) as target:
        done = await bench_beside("run", "--target", target, "--trace", str(trace), *QUICK, "--json", str(out))
    assert done.returncode == 1
    assert "not one of" in done.stderr
    assert f"{code.name}: out of order" in done.stderr
    assert done.stdout == ""
    assert not out.exists()


async def test_an_openai_compatible_server_is_driven_by_the_same_command(trace: Path, tmp_path: Path) -> None:
    out = tmp_path / "report.json"
    server = OpenAiServer()
    async with server.running():
        done = await bench_beside(
            *("run", "--target", server.target, "--model", MODEL, "--trace", str(trace), *QUICK),
            *("--vocab-size", "50", "--json", str(out)),
        )
    assert done.returncode in (0, 1), done.stderr
    report = read_report(out)
    assert report.score.done == report.score.sent
    assert report.timeline == ()
    probe, *bodies = server.bodies
    assert len(probe["prompt"]) == 4
    assert sorted(len(body["prompt"]) for body in bodies) == sorted(r.prompt_len for r in report.records)
    assert all(token < 50 for body in bodies for token in body["prompt"])


def test_the_real_server_under_load(trace: Path, tmp_path: Path) -> None:
    out = tmp_path / "report.json"
    with RunningServer() as server:
        done = bench(
            *("run", "--target", f"grpc://{server.address}", "--trace", str(trace), "--rate", "5", "--duration", "2"),
            *("--json", str(out)),
        )
        assert done.returncode in (0, 1), done.stderr
        assert server.free_pages_are_back()
    report = json.loads(out.read_text())
    assert report["score"]["done"] == report["score"]["sent"] > 0
    assert report["score"]["queue_s"]["count"] == report["score"]["done"]
    assert report["target"]["server"]["policy"]
    assert report["timeline"][0]["total_pages"] > 0


def test_load_ends_with_the_command_also_when_that_is_killed(sink: Sink, tmp_path: Path) -> None:
    trace = tmp_path / "endless.jsonl"
    write_trace([TraceEntry(8, 10_000, 5.0, 1.0)], trace)
    command = [sys.executable, "-m", "semipd.bench", "run", "--target", f"grpc://{sink.address}"]
    with subprocess.Popen([*command, "--trace", str(trace), "--rate", "10", "--duration", "60"]) as run:
        child = until(lambda: next(iter(psutil.Process(run.pid).children()), None))
        run.kill()
    assert until(lambda: not child.is_running())


def test_a_server_that_asks_for_a_key_is_given_the_one_of_the_environment(
    trace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = tmp_path / "keys"
    keys.write_text("sesame\n")
    keys.chmod(0o600)
    with RunningServer("--api-keys-file", str(keys)) as server:
        arguments = ["run", "--target", f"grpc://{server.address}", "--trace", str(trace), *QUICK]
        monkeypatch.delenv("SEMIPD_API_KEY", raising=False)
        refused = bench(*arguments)
        monkeypatch.setenv("SEMIPD_API_KEY", "sesame")
        let_in = bench(*arguments, "--json", str(tmp_path / "report.json"))
    assert refused.returncode == 1
    assert "an API key is needed" in refused.stderr
    assert read_report(tmp_path / "report.json").score.done > 0
    assert "sesame" not in let_in.stdout + (tmp_path / "report.json").read_text()


def test_a_killed_load_process_ends_the_run_without_a_report(sink: Sink, tmp_path: Path) -> None:
    trace, out = tmp_path / "endless.jsonl", tmp_path / "report.json"
    write_trace([TraceEntry(8, 10_000, 5.0, 1.0)], trace)
    command = [sys.executable, "-m", "semipd.bench", "run", "--target", f"grpc://{sink.address}"]
    options = ["--trace", str(trace), "--rate", "10", "--duration", "60", "--json", str(out)]
    with subprocess.Popen([*command, *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as run:
        parent = psutil.Process(run.pid)
        child = until(lambda: next(iter(parent.children()), None))
        child.kill()
        stdout, stderr = run.communicate(timeout=60)
    assert run.returncode == 1
    assert "a load process ended with code -9" in stderr
    assert stdout == ""
    assert not out.exists()
