"""The picture of a running server in a terminal: one frame from one report and a little history."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from semipd.bench.gpu import GpuReading
from semipd.v1 import admin_pb2 as pb

KEPT = 120
"""Reports that a sparkline can look back on."""
BAR = 30
SPARKS = "▁▂▃▄▅▆▇█"
TARGET = 0.9
"""Attainment that counts as goodput."""


@dataclass(frozen=True, slots=True)
class LoadPoint:
    """The values of one report that the sparklines need; None where the server had seen nothing."""

    waiting: float
    decoding: float
    tokens_per_s: float
    ttft_p90_s: float | None
    itl_p90_s: float | None
    attainment: float | None


@dataclass(slots=True)
class LoadHistory:
    """The last reports, the GPUs' last readings, and why the server doesn't answer while it doesn't."""

    moments: deque[LoadPoint] = field(default_factory=lambda: deque(maxlen=KEPT))
    gpus: tuple[GpuReading, ...] = ()
    gone: str | None = None

    def add(self, load: pb.Load, gpus: tuple[GpuReading, ...] = ()) -> None:
        self.gone = None
        self.gpus = gpus
        self.moments.append(
            LoadPoint(
                waiting=load.waiting,
                decoding=load.decoding,
                tokens_per_s=load.output_tokens_per_second,
                ttft_p90_s=load.time_to_first_token.p90 if load.HasField("time_to_first_token") else None,
                itl_p90_s=load.inter_token_latency.p90 if load.HasField("inter_token_latency") else None,
                attainment=load.slo_attainment if load.HasField("slo_attainment") else None,
            )
        )


def view(info: pb.GetServerInfoResponse, load: pb.Load, history: LoadHistory) -> RenderableType:
    """One frame. Reads no clock and asks nobody."""
    parts: list[RenderableType] = [headline(info, load)]
    if history.gone is not None:
        parts.append(
            Text(f"The server doesn't answer ({history.gone}). Trying again; below is its last report.", "bold red")
        )
    parts += [requests(load, history), latencies(load, history), device(info, load), processes(info)]
    if history.gpus:
        parts.append(gpu_table(history.gpus))
    return Group(*parts)


def line(load: pb.Load) -> str:
    """The same in one line, for logs and pipes."""
    ttft = spread(load, "time_to_first_token")
    itl = spread(load, "inter_token_latency")
    return (
        f"waiting={load.waiting} prefilling={load.prefilling} decoding={load.decoding} "
        f"ttft_p50/p90/p99={ttft} itl_p50/p90/p99={itl} "
        f"slo_attainment={percent(load.slo_attainment) if load.HasField('slo_attainment') else '-'} "
        f"output_tokens_per_s={load.output_tokens_per_second:.1f} "
        f"pages_used={percent(pages_used(load))} partition={load.partition.prefill:g}/{load.partition.decode:g} "
        f"policy={load.policy} finished={load.finished_total} refused={load.refused_total} "
        f"worker_restarts={load.worker_restarts_total}{' draining' if load.draining else ''}"
    )


def headline(info: pb.GetServerInfoResponse, load: pb.Load) -> RenderableType:
    text = Text.assemble(
        ("semipd ", "bold"),
        (info.version or "?", "bold"),
        f"  {info.model or '?'}  on {info.device or '?'}  policy ",
        (load.policy or info.policy or "?", "bold cyan"),
        f"  up {duration(info.uptime)}",
        no_wrap=True,
        overflow="ellipsis",
    )
    if load.draining:
        text.append("  DRAINING", "bold yellow")
    return text


def requests(load: pb.Load, history: LoadHistory) -> RenderableType:
    table = grid(3)
    table.add_row("waiting", number(load.waiting), sparkline([m.waiting for m in history.moments]))
    table.add_row("prefilling", number(load.prefilling), "")
    table.add_row("decoding", number(load.decoding), sparkline([m.decoding for m in history.moments]))
    table.add_row(
        "output tokens/s",
        Text(f"{load.output_tokens_per_second:,.1f}", "bold"),
        sparkline([m.tokens_per_s for m in history.moments]),
    )
    table.add_row(
        "since start",
        "",
        f"{load.finished_total:,} finished, {load.refused_total:,} refused, "
        f"{load.worker_restarts_total:,} worker restarts",
    )
    return Panel(table, title="requests", title_align="left")


def latencies(load: pb.Load, history: LoadHistory) -> RenderableType:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for name in ("over 30 s", "p50", "p90", "p99", "p90 so far"):
        table.add_column(name, justify="left" if name in {"over 30 s", "p90 so far"} else "right", no_wrap=True)
    for title, name, past in (
        ("first token (TTFT)", "time_to_first_token", [m.ttft_p90_s for m in history.moments]),
        ("between tokens (ITL)", "inter_token_latency", [m.itl_p90_s for m in history.moments]),
    ):
        seen = getattr(load, name) if load.HasField(name) else None
        cells = ["-"] * 3 if seen is None else [latency(s) for s in (seen.p50, seen.p90, seen.p99)]
        table.add_row(title, *cells, sparkline(past))
    if load.HasField("slo_attainment"):
        style = "green" if load.slo_attainment >= TARGET else "red"
        slo = bar(load.slo_attainment, style, percent(load.slo_attainment))
    else:
        slo = Text("no request of the last 30 s named an SLO", "dim")
    attained = grid(2)
    attained.add_row("SLO attainment", slo)
    return Panel(Group(table, attained), title="latencies", title_align="left")


def device(info: pb.GetServerInfoResponse, load: pb.Load) -> RenderableType:
    table = grid(2)
    shares = load.partition
    competing = ", competing" if shares.prefill + shares.decode > 100 else ""
    table.add_row("prefill share", bar(shares.prefill / 100, "magenta", f"{shares.prefill:g} %{competing}"))
    table.add_row("decode share", bar(shares.decode / 100, "blue", f"{shares.decode:g} %{competing}"))
    used = load.total_pages - load.free_pages
    style = "red" if pages_used(load) > 0.9 else "green"
    table.add_row(
        "KV pages", bar(pages_used(load), style, f"{percent(pages_used(load))}  {used:,}/{load.total_pages:,}")
    )
    backend = f" (partition: {info.partition_backend})" if info.partition_backend else ""
    return Panel(table, title=f"device{backend}", title_align="left")


def processes(info: pb.GetServerInfoResponse) -> RenderableType:
    said = "   ".join(
        f"{p.role} {p.pid}" + (f" (#{p.incarnation})" if p.incarnation > 1 else "") for p in info.processes
    )
    return Panel(Text(said or "unknown", "" if said else "dim"), title="processes (pid)", title_align="left")


def gpu_table(gpus: Iterable[GpuReading]) -> RenderableType:
    table = grid(4)
    for gpu in gpus:
        power = "-" if gpu.power_w is None else f"{gpu.power_w:.0f} W"
        limit = "" if gpu.power_limit_w is None else f" of {gpu.power_limit_w:.0f} W"
        busy = Text("-") if gpu.utilisation is None else bar(gpu.utilisation, "green", percent(gpu.utilisation))
        memory = f"{gpu.memory_used / 2**30:.1f}/{gpu.memory_total / 2**30:.0f} GiB"
        table.add_row(f"{gpu.index} {gpu.name}", Text(power + limit), busy, memory)
    return Panel(table, title="GPUs of the machine that this runs on", title_align="left")


def grid(columns: int) -> Table:
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(min_width=20, no_wrap=True, style="dim")
    for _ in range(columns - 1):
        table.add_column(no_wrap=True)
    return table


def bar(share: float, style: str, label: str) -> Text:
    """A bar of BAR cells; a share outside 0 to 1 is drawn at the end that it exceeds."""
    full = round(max(0.0, min(1.0, share)) * BAR)
    return Text.assemble(("█" * full, style), ("░" * (BAR - full), "dim"), f" {label}")


def sparkline(values: Sequence[float | None], width: int = 40) -> Text:
    """The last `width` values from 0 to their highest; a gap where there was nothing."""
    recent = list(values)[-width:]
    highest = max((value for value in recent if value is not None), default=0.0)
    marks = (
        " " if value is None else SPARKS[round(value / highest * (len(SPARKS) - 1))] if highest > 0 else SPARKS[0]
        for value in recent
    )
    return Text("".join(marks), "cyan")


def pages_used(load: pb.Load) -> float:
    return 1 - load.free_pages / load.total_pages if load.total_pages else 0.0


def spread(load: pb.Load, name: str) -> str:
    """Milliseconds p50/p90/p99 of one of the load's percentiles, or a dash."""
    if not load.HasField(name):
        return "-"
    seen = getattr(load, name)
    return "/".join(f"{1000 * seconds:.1f}" for seconds in (seen.p50, seen.p90, seen.p99)) + "ms"


def number(value: int) -> Text:
    return Text(f"{value:,}", "bold")


def percent(share: float) -> str:
    return f"{100 * share:.1f}%"


def latency(seconds: float) -> str:
    return f"{1000 * seconds:.1f} ms" if seconds < 1 else f"{seconds:.2f} s"


def duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h {minutes:02}m" if hours else f"{minutes}m {rest:02}s" if minutes else f"{rest}s"
