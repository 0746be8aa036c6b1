"""Shows what clients see of an illegal access that kills every MPS client, and of a SIGKILL of the decode worker."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import grpc

from figures import illegal_access
from figures.bench import Bench, wait_for
from figures.load import during, gaps, pause, running_at, said_of, settings_for
from figures.section_results import Page, histogram, spread
from figures.server_process import Admin, started_at
from semipd.bench.arrivals import arrivals
from semipd.bench.drawing.plots import draw_gaps_over_time
from semipd.bench.errors import RunFailed
from semipd.bench.load.drive import DriveResult
from semipd.bench.scoring.records import Outcome
from semipd.bench.traces import load_trace, scaled

ILLEGAL, KILL = "illegal address", "SIGKILL of decode"
PIPE = "CUDA_MPS_PIPE_DIRECTORY"
REPLACED_S = 30.0


@dataclass(frozen=True)
class Resident:
    """The process that holds the weights: the same one still holds the same copy."""

    pid: int
    incarnation: int
    started_at: int


@dataclass(frozen=True)
class Fault:
    """`at` of time.monotonic(), just before it was done."""

    name: str
    at: float
    workers_replaced_s: float | None
    """Seconds until the workers that it was meant to kill had successors; None: not in time."""
    died: tuple[str, ...]
    """Roles of all that were replaced."""
    resident_before: Resident
    resident_after: Resident
    note: str = ""


def fault(bench: Bench, page: Page) -> None:
    scale = bench.scale
    served, admin = bench.server("fault")
    faults = [ILLEGAL, KILL] if bench.gpu else [KILL]
    seconds = scale.fault_s * (len(faults) + 1)
    chat = scaled(load_trace("chat"), scale.fault_lengths)
    due = arrivals(chat, scale.fault_rate, seconds, bench.seed)
    settings = settings_for(served.target, seconds, bench.clients, "chat", scale.fault_rate, bench.seed)
    driven, tried = asyncio.run(during(settings, due, (), lambda: happen(bench, admin, faults)))
    made = [one for one in tried if isinstance(one, Fault)]
    page.error = "; ".join(one for one in tried if isinstance(one, str))
    page.result |= {
        "rate": scale.fault_rate,
        "requests": len(driven.records),
        "done": sum(r.outcome is Outcome.DONE for r in driven.records),
        "lost": [r.reason or r.outcome.value for r in driven.records if r.outcome is not Outcome.DONE][:20],
        "content_hashes": [entry.get("content_hash") for entry in served.logged("resident ready")],
        "gaps_ms": histogram(gap for _, gap in gaps(driven.records)),
        "faults": [seen_of(driven, one, scale.fault_s) for one in made],
        "load": said_of(driven),
    }
    if bench.gpu and made and made[0].name == ILLEGAL:
        first = page.result["faults"][0]
        page.figures |= {
            "fault_lost": len(driven.records) - page.result["done"],
            "fault_reloads": sum(one.resident_before != one.resident_after for one in made),
        }
        if first["pause_s"] is not None:
            page.figures["fault_pause_p99_s"] = first["pause_s"]["p99"]
    page.save()
    events = [(one.at - driven.start_s, one.name) for one in made]
    title = f"chat at {scale.fault_rate:g} requests/s: {driven.target.model}"
    draw_gaps_over_time(page.picture(), gaps(driven.records), events, title)


async def happen(bench: Bench, admin: Admin, faults: Sequence[str]) -> list[Fault | str]:
    """Returns, for each fault, what it was, or why it could not be made."""
    begin = time.monotonic()
    made: list[Fault | str] = []
    for number, name in enumerate(faults, 1):
        await asyncio.sleep(max(0.0, begin + number * bench.scale.fault_s - time.monotonic()))
        try:
            made.append(await asyncio.to_thread(one_fault, name, admin))
        except (RunFailed, OSError, KeyError, grpc.RpcError, subprocess.SubprocessError) as error:
            made.append(f"{name}: {type(error).__name__}: {error}")
    return made


def one_fault(name: str, admin: Admin) -> Fault:
    """Raises RunFailed where it can't be done."""
    old = admin.workers()
    before = resident(old)
    trespass = ready_to_trespass(old) if name == ILLEGAL else None
    meant = ("prefill", "decode") if trespass else ("decode",)
    at = time.monotonic()
    if trespass is None:
        os.kill(old["decode"][0], signal.SIGKILL)
        note = ""
    else:
        at, note = trespass()

    def successors() -> bool:
        now = admin.workers()
        return all(role in now and now[role] != old[role] for role in meant)

    replaced = wait_for(REPLACED_S, successors, 0.02)
    took = time.monotonic() - at if replaced else None
    now = admin.workers()
    died = tuple(role for role in ("prefill", "decode") if now.get(role) != old[role])
    return Fault(name, at, took, died, before, resident(admin.workers()), note)


def resident(workers: dict[str, tuple[int, int]]) -> Resident:
    pid, incarnation = workers["resident"]
    return Resident(pid, incarnation, started_at(pid))


def ready_to_trespass(workers: dict[str, tuple[int, int]]) -> Any:
    """A call that does it; its answer is when, of time.monotonic(), and what the trespasser said."""
    pipe = mps_pipe([workers["decode"][0], workers["prefill"][0]])
    environment = {**os.environ, PIPE: pipe}

    def trespass() -> tuple[float, str]:
        done = subprocess.run(
            [sys.executable, "-P", illegal_access.__file__],
            env=environment,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        said = (done.stdout + done.stderr).strip()[-500:]
        if done.returncode:
            raise RunFailed(f"the illegal access could not be made: {said}")
        return float(json.loads(done.stdout)["at"]), said

    return trespass


def mps_pipe(pids: Sequence[int]) -> str:
    """The daemon's folder, from the environment of the workers or, where they set it later than at their start, of the
    daemon. Raises RunFailed."""
    daemons = [int(p.name) for p in Path("/proc").iterdir() if p.name.isdigit() and is_daemon(p)]
    for pid in [*pids, *daemons]:
        try:
            variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        except OSError:
            continue
        for variable in variables:
            name, _, value = variable.decode(errors="replace").partition("=")
            if name == PIPE and value:
                return value
    raise RunFailed("no worker and no MPS daemon has a CUDA_MPS_PIPE_DIRECTORY: does the server run without MPS?")


def is_daemon(process: Path) -> bool:
    try:
        return (process / "comm").read_text().startswith("nvidia-cuda-mps")
    except OSError:
        return False


def seen_of(driven: DriveResult, one: Fault, window_s: float) -> dict[str, Any]:
    """Returns what the streams saw that were running at that moment."""
    at = one.at - driven.start_s
    streams = running_at(driven.records, at)
    pauses = [pause(r, at, at + window_s) for r in streams]
    after = sorted(t for r in driven.records for t, _ in r.token_times() if t > at)
    silence = max((b - a for a, b in zip([at, *after], after, strict=False) if a < at + window_s), default=None)
    return asdict(one) | {
        "at": round(at, 3),
        "streams_running": len(streams),
        "pause_s": spread(pauses),
        "nobody_got_a_token_for_s": silence,
        "weights_kept": one.resident_before == one.resident_after,
    }
