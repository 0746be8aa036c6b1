"""`semipd top`: the frame as text, and the command against a real gRPC server with made-up load."""

from __future__ import annotations

import io
import os
import pty
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent import futures
from contextlib import contextmanager

import grpc
import pytest
import typer
from rich.console import Console, RenderableType
from typer.testing import CliRunner

from semipd.bench.commands.top import top
from semipd.bench.drawing.top_frame import LoadHistory, line, sparkline, view
from semipd.bench.errors import InputError, Unreachable
from semipd.bench.gpu import GpuMeter, GpuReading
from semipd.bench.targets.watch import LoadWatch, ServerGone, ServerReport, address_of
from semipd.v1 import admin_pb2 as pb
from semipd.v1 import admin_pb2_grpc

PATIENCE_S = 90.0
INFO = pb.GetServerInfoResponse(
    version="0.1.0",
    model="Qwen3-0.6B",
    device="cpu",
    partition_backend="cores",
    policy="static",
    processes=[pb.Process(role="decode", pid=4711, incarnation=3), pb.Process(role="prefill", pid=4712, incarnation=1)],
    uptime=3723,
    total_pages=1000,
    page_size=16,
)
LOAD = pb.Load(
    waiting=17,
    prefilling=2,
    decoding=64,
    free_pages=250,
    total_pages=1000,
    partition=pb.Partition(prefill=60, decode=40),
    policy="static",
    time_to_first_token=pb.Percentiles(p50=0.0523, p90=0.31, p99=1.25),
    inter_token_latency=pb.Percentiles(p50=0.021, p90=0.033, p99=0.0447),
    output_tokens_per_second=1234.5,
    finished_total=4321,
    refused_total=12,
    worker_restarts_total=1,
    slo_attainment=0.934,
)


def shown(renderable: RenderableType, width: int = 110) -> str:
    console = Console(width=width, file=io.StringIO())
    with console.capture() as captured:
        console.print(renderable)
    return captured.get()


def history(*loads: pb.Load) -> LoadHistory:
    kept = LoadHistory()
    for load in loads:
        kept.add(load)
    return kept


def test_a_frame_shows_everything_that_the_server_reports() -> None:
    text = shown(view(INFO, LOAD, history(LOAD)))
    for said in (
        *("0.1.0", "Qwen3-0.6B", "cpu", "static", "up 1h 02m", "17", "64", "1,234.5"),
        *("52.3 ms", "310.0 ms", "1.25 s", "21.0 ms", "33.0 ms", "44.7 ms", "93.4%"),
        *("60 %", "40 %", "75.0%  750/1,000", "partition: cores"),
        *("4,321 finished", "12 refused", "1 worker restarts", "decode 4711 (#3)", "prefill 4712"),
    ):
        assert said in text


def test_a_frame_fits_a_terminal_of_80_columns() -> None:
    text = shown(view(INFO, LOAD, history(LOAD)), width=80)
    assert all(len(row) <= 80 for row in text.splitlines())
    for said in ("93.4%", "750/1,000", "12 refused", "44.7 ms", "decode 4711", "policy static"):
        assert said in text


def test_bars_are_as_long_as_their_shares() -> None:
    rows = {
        row.split()[1] + row.split()[2]: row
        for row in shown(view(INFO, LOAD, history(LOAD))).splitlines()
        if "█" in row
    }
    assert rows["prefillshare"].count("█") == 18
    assert rows["decodeshare"].count("█") == 12


def test_a_server_that_has_seen_nothing_shows_dashes_and_no_attainment() -> None:
    text = shown(view(INFO, pb.Load(total_pages=10, free_pages=10), history()))
    assert "no request of the last 30 s named an SLO" in text
    assert "0.0%  0/10" in text
    assert " 0.0 ms" not in text


def test_shares_that_compete_and_a_draining_server_are_marked() -> None:
    load = pb.Load(partition=pb.Partition(prefill=100, decode=100), draining=True)
    text = shown(view(INFO, load, history(load)))
    assert "100 %, competing" in text
    assert "DRAINING" in text


def test_a_server_that_went_away_leaves_its_last_report_and_the_reason() -> None:
    kept = history(LOAD)
    kept.gone = "UNAVAILABLE: connection refused"
    text = shown(view(INFO, LOAD, kept))
    assert "doesn't answer (UNAVAILABLE: connection refused)" in text
    assert "1,234.5" in text
    kept.add(LOAD)
    assert "doesn't answer" not in shown(view(INFO, LOAD, kept))


def test_gpus_are_shown_with_power_and_what_a_card_does_not_tell_is_a_dash() -> None:
    kept = LoadHistory()
    h200 = GpuReading(0, "NVIDIA H200", 512.4, 700.0, 0.87, 100 * 2**30, 141 * 2**30)
    silent = GpuReading(1, "GRID", None, None, None, 0, 16 * 2**30)
    kept.add(LOAD, (h200, silent))
    text = shown(view(INFO, LOAD, kept))
    assert "512 W of 700 W" in text
    assert "87.0%" in text
    assert "100.0/141 GiB" in text
    assert "1 GRID" in text


def test_a_machine_without_a_gpu_has_no_readings() -> None:
    with GpuMeter() as meter:
        assert all(reading.memory_total > 0 for reading in meter.read())


def test_a_sparkline_scales_to_its_highest_and_leaves_gaps() -> None:
    assert sparkline([0.0, 4.0, None, 8.0]).plain == "▁▅ █"
    assert sparkline([0.0, 0.0]).plain == "▁▁"
    assert sparkline([]).plain == ""
    assert sparkline([9.0] + [1.0] * 5, width=5).plain == "█████"


def test_a_line_has_the_same_figures() -> None:
    assert line(LOAD) == (
        "waiting=17 prefilling=2 decoding=64 ttft_p50/p90/p99=52.3/310.0/1250.0ms "
        "itl_p50/p90/p99=21.0/33.0/44.7ms slo_attainment=93.4% output_tokens_per_s=1234.5 pages_used=75.0% "
        "partition=60/40 policy=static finished=4321 refused=12 worker_restarts=1"
    )
    assert "ttft_p50/p90/p99=- itl_p50/p90/p99=- slo_attainment=- " in line(pb.Load())


class Admin(admin_pb2_grpc.AdminServiceServicer):
    """Reports `loads` one after another, then waits until it is stopped or `end` is set."""

    def __init__(self, loads: list[pb.Load]) -> None:
        self.loads = loads
        self.end = threading.Event()
        self.intervals: list[float] = []
        self.infos = 0

    def GetServerInfo(
        self, request: pb.GetServerInfoRequest, context: grpc.ServicerContext
    ) -> pb.GetServerInfoResponse:
        self.infos += 1
        return INFO

    def GetLoad(self, request: pb.GetLoadRequest, context: grpc.ServicerContext) -> pb.GetLoadResponse:
        return pb.GetLoadResponse(load=self.loads[0])

    def WatchLoad(self, request: pb.WatchLoadRequest, context: grpc.ServicerContext) -> Iterator[pb.WatchLoadResponse]:
        context.add_callback(self.end.set)
        self.intervals.append(request.interval)
        yield from (pb.WatchLoadResponse(load=load) for load in self.loads)
        self.end.wait(PATIENCE_S)


@contextmanager
def serving(admin: Admin | None, address: str = "127.0.0.1:0") -> Iterator[tuple[str, Callable[[], None]]]:
    """(address, stop at once); without a servicer, a gRPC server that knows no method."""
    server = grpc.server(futures.ThreadPoolExecutor(4))
    if admin is not None:
        admin_pb2_grpc.add_AdminServiceServicer_to_server(admin, server)
    port = server.add_insecure_port(address)
    server.start()

    def stop() -> None:
        if admin is not None:
            admin.end.set()
        server.stop(None).wait(PATIENCE_S)

    try:
        yield f"127.0.0.1:{port}", stop
    finally:
        stop()


def nobody() -> str:
    with serving(Admin([])) as (address, _):
        return address


@pytest.fixture
def app() -> typer.Typer:
    app = typer.Typer()
    app.command()(top)
    return app


def test_once_prints_one_frame_and_ends_well(app: typer.Typer) -> None:
    with serving(Admin([LOAD])) as (address, _):
        result = CliRunner().invoke(app, ["--target", address, "--once"], env={"COLUMNS": "110"})
    assert result.exit_code == 0, result.output
    assert result.output.count("output tokens/s") == 1
    assert "1,234.5" in result.output


@pytest.mark.parametrize("options", [["--once"], []])
def test_an_unreachable_server_is_a_sentence_and_exit_code_3(app: typer.Typer, options: list[str]) -> None:
    address = nobody()
    result = CliRunner().invoke(app, ["--target", address, *options])
    assert result.exit_code == 3
    assert f"no semipd server answers at {address}" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_grpc_server_that_is_not_semipd_is_said_to_be_another(app: typer.Typer) -> None:
    with serving(None) as (address, _):
        result = CliRunner().invoke(app, ["--target", address, "--once"])
    assert result.exit_code == 1
    assert "not as a semipd server: UNIMPLEMENTED" in result.stderr


@pytest.mark.parametrize("target", ["localhost", "http://127.0.0.1:80", "127.0.0.1:port", ":50051", "a:1/b"])
def test_a_target_that_is_no_address_is_refused(target: str) -> None:
    with pytest.raises(InputError, match="HOST:PORT"):
        address_of(target)


def test_a_target_may_be_written_as_for_bench() -> None:
    assert address_of("grpc://[::1]:50051") == "[::1]:50051"


def test_a_server_that_goes_away_is_shown_and_found_again() -> None:
    with serving(Admin([LOAD])) as (address, stop), LoadWatch(address) as watch:
        frames = watch.frames(0.05)
        assert isinstance(next(frames), ServerReport)
        stop()
        assert isinstance(next(frames), ServerGone)
        with serving(Admin([pb.Load(waiting=3)]), address):
            back = next(frame for frame in frames if isinstance(frame, ServerReport))
    assert back.load.waiting == 3
    assert back.info.model == "Qwen3-0.6B"


def test_a_server_that_never_answered_is_unreachable_rather_than_gone() -> None:
    with LoadWatch(nobody()) as watch, pytest.raises(Unreachable):
        next(watch.frames(1.0))


def test_the_interval_reaches_the_server_and_info_is_asked_again_when_a_worker_was_replaced() -> None:
    loads = [pb.Load(), pb.Load(), pb.Load(worker_restarts_total=1), pb.Load(worker_restarts_total=1)]
    admin = Admin(loads)
    with serving(admin) as (address, _), LoadWatch(address) as watch:
        frames = watch.frames(0.25)
        asked = []
        for _ in loads:
            next(frames)
            asked.append(admin.infos)
        assert admin.intervals == [0.25]
    assert asked == [2, 2, 3, 3]


def running(address: str, output: int) -> subprocess.Popen[bytes]:
    program = "import typer; from semipd.bench.commands.top import top; typer.run(top)"
    command = [sys.executable, "-c", program, "--target", address]
    return subprocess.Popen(command, stdout=output, stderr=output, env=dict(os.environ, COLUMNS="110", TERM="xterm"))


def read_until(output: int, wanted: bytes) -> bytes:
    seen = b""
    while wanted not in seen:
        assert select.select([output], [], [], PATIENCE_S)[0], f"{wanted!r} is not in {seen!r}"
        piece = os.read(output, 4096)
        assert piece, f"{wanted!r} is not in {seen!r}"
        seen += piece
    return seen


@pytest.mark.parametrize(("is_terminal", "wanted"), [(False, b"waiting=17 prefilling=2"), (True, b"output tokens/s")])
def test_it_goes_on_until_ctrl_c_and_ends_well_with_and_without_a_terminal(is_terminal: bool, wanted: bytes) -> None:
    ours, theirs = pty.openpty() if is_terminal else os.pipe()
    with serving(Admin([LOAD])) as (address, _):
        process = running(address, theirs)
        os.close(theirs)
        try:
            seen = read_until(ours, wanted)
            process.send_signal(signal.SIGINT)
            assert process.wait(PATIENCE_S) == 0
            assert b"Traceback" not in seen
        finally:
            process.kill()
            process.wait()
            os.close(ours)
