"""A run of `semipd bench interference`: the same load processes and targets as any other run."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from semipd.bench.drawing.plots import GapCurve, draw_interference, rounded
from semipd.bench.errors import InputError
from semipd.bench.load.drive import Progress, drive, look
from semipd.bench.provenance import provenance
from semipd.bench.runs.interference import (
    Interference,
    InterferenceHalf,
    InterferenceSettings,
    batch_chains,
    gaps_within,
    interference,
    prompt_arrivals,
    windows,
)
from semipd.bench.scoring.records import RequestRecord
from semipd.bench.scoring.score import distribution
from semipd.bench.scoring.target_info import TargetInfo
from semipd.bench.scoring.timeline import LoadSample
from semipd.bench.scoring.validity import ClientUse, problems
from semipd.bench.settings import RunSettings
from semipd.bench.writable import ready_to_write
from semipd.core.plain import from_plain, read_json, write_json
from semipd.core.provenance import Provenance

KIND = "semipd bench interference"
FORMAT = 1
DRAIN_S = 30.0
"""Seconds that prompts have after the last arrival."""


@dataclass(frozen=True, slots=True)
class InterferenceReport:
    """`records` has every sequence of the batch with all its gaps, and every prompt."""

    settings: InterferenceSettings
    target: TargetInfo
    provenance: Provenance
    problems: tuple[str, ...]
    """Why the run is invalid; empty where it is valid."""
    result: Interference
    clients: tuple[ClientUse, ...]
    timeline: tuple[LoadSample, ...]
    records: tuple[RequestRecord, ...]
    kind: str = KIND
    format: int = FORMAT

    @property
    def valid(self) -> bool:
        return not self.problems

    def save(self, path: Path) -> None:
        """Writes JSON. Raises InputError where it can't be written."""
        write_json(self, path)

    def draw(self, path: Path) -> None:
        """Draws a PNG."""
        at = self.settings
        batch = [record for record in self.records if record.index < prompt_arrivals(at)[0].index]
        labels = ("decoding alone", f"with {at.prompt_rate:g} prompts/s of {at.prompt_tokens} tokens")
        halves = [
            GapCurve(label, gaps_within(batch, window), scored.gaps_s)
            for label, window, scored in zip(
                labels, windows(at), (self.result.alone, self.result.with_prompts), strict=True
            )
        ]
        title = f"{at.decoding} sequences decoding, {self.target.model}"
        draw_interference(path, halves, title if self.valid else f"INVALID RUN: {title}")


def read_interference(path: Path) -> InterferenceReport:
    """Raises InputError where the file is not such a report of this version."""
    given = read_json(path)
    if not isinstance(given, dict) or (given.get("kind"), given.get("format")) != (KIND, FORMAT):
        raise InputError(f"{path}: not a report of `semipd bench interference`")
    return from_plain(InterferenceReport, given, str(path))


async def measure_interference(
    settings: InterferenceSettings, progress: Callable[[Progress], None] | None = None
) -> InterferenceReport:
    """Raises InputError, Unreachable, or RunFailed where there is nothing to compare.

    A run whose client fell behind gives a report that says so (`problems`).
    """
    _, loaded = windows(settings)
    run = RunSettings(
        target=settings.target,
        trace="interference",
        rate=settings.prompt_rate,
        duration_s=loaded.end_s,
        seed=settings.seed,
        clients=settings.clients,
        model=settings.model,
        vocab_size=settings.vocab_size,
        drain_s=DRAIN_S,
    )
    target = await look(run)
    check_context(settings, target)
    driven = await drive(run, target, prompt_arrivals(settings), progress, batch_chains(settings))
    result = interference(driven.records, settings)
    lateness = distribution(r.sent_s - r.scheduled_s for r in driven.records)
    assert lateness is not None
    return InterferenceReport(
        settings=settings,
        target=driven.target,
        provenance=provenance(),
        problems=problems(driven.records, lateness, driven.clients),
        result=result,
        clients=driven.clients,
        timeline=driven.timeline,
        records=driven.records,
    )


def check_context(settings: InterferenceSettings, target: TargetInfo) -> None:
    """Raises InputError where the model's context is too short."""
    for name, length in (
        ("--context and --output-tokens", settings.context + settings.output_tokens),
        ("--prompt-tokens and --prompt-output", settings.prompt_tokens + settings.prompt_output),
    ):
        if target.max_context is not None and length > target.max_context:
            raise InputError(
                f"{name} make {length} tokens, and the context of {target.model} ends at {target.max_context}"
            )


def interference_once(settings: InterferenceSettings, json_file: Path | None, plot: Path | None) -> bool:
    """Runs for a person at a terminal: the table and the files. Returns whether it was valid. Raises CommandError."""
    ready_to_write(json_file, plot)
    report = asyncio.run(measure_interference(settings))
    Console(soft_wrap=True).print(table(report))
    if json_file is not None:
        report.save(json_file)
    if plot is not None:
        report.draw(plot / "interference.png")
    return report.valid


def table(report: InterferenceReport) -> RenderableType:
    """Milliseconds."""
    result = report.result
    shown = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    shown.add_column("gap between two tokens")
    for name in ("p50", "p99", "longest", "sequences", "tokens/s"):
        shown.add_column(name, justify="right")
    shown.add_row("without prompts", *cells(result.alone))
    shown.add_row("with prompts", *cells(result.with_prompts))
    shown.add_row("ratio", *(f"×{ratio:.2f}" for ratio in (result.p50_ratio, result.p99_ratio, result.max_ratio)))
    prompts = result.prompts
    ttft = prompts.ttft_s
    waited = "" if ttft is None else f", first token after {ttft.p50:.3g} s (p50), {ttft.p99:.3g} s (p99)"
    lines: list[RenderableType] = [shown, Text(f"prompts: {prompts.done} of {prompts.sent} answered{waited}")]
    if not result.steady:
        lines.append(
            Text(
                "The batch was smaller with prompts: new sequences queued behind them. The gaps with prompts are those "
                "of a smaller batch, and the true ratio is higher.",
                "yellow",
            )
        )
    lines += [Text(f"INVALID: {problem}", "bold red") for problem in report.problems]
    return Group(*lines)


def cells(half: InterferenceHalf) -> list[str]:
    gaps = [f"{rounded(1000 * seconds)} ms" for seconds in (half.gaps_s.p50, half.gaps_s.p99, half.gaps_s.max)]
    return [*gaps, f"{half.sequences:.1f}", f"{half.tokens_per_s:,.0f}"]
