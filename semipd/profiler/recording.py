"""Carries out a schedule of measurements on a machine and makes a profile of the answers. Needs no GPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Protocol

from semipd.bench.provenance import provenance
from semipd.core.clock import Clock
from semipd.core.errors import InputError
from semipd.core.provenance import Provenance
from semipd.profiler.measurements import Alternating, Beside, Measurement, MixedPass, PassAlone, StepAlone
from semipd.profiles.profile import (
    Buckets,
    DecodePoint,
    DecodeTable,
    MixedPoint,
    ModelShape,
    Overheads,
    PrefillPoint,
    PrefillTable,
    Profile,
    ProfiledGpu,
    Source,
    TurnsPoint,
    check,
)

OVERHEADS = Overheads(arrive_s=0.0005, turnaround_s=0.0008, prepare_s=0.0008, deliver_s=0.002, handover_s=0.0004)
"""The server's own times on one H200's host. Together with the pass they make the TTFT that was measured of a request
alone.

`handover_s` is the gap alone: about 0.3 ms were measured between a pass's end and the next step's launch. Profiles of
bursts, at a higher clock than a server has under load, had 0.9 ms to make up for that; what `Alternating` measures is
in place of it."""

HOW = (
    "Recorded by `semipd profile`: medians of work without a pause, at the clock that the GPU then keeps; alone and by "
    "turns in one process, side by side in two under MPS. Overheads are the server's constants and were not measured "
    "here."
)


class Unfit(Exception):
    """This device can't make a measurement: its size does not fit. The message says why."""


class Machine(Protocol):
    """Makes the measurements, in milliseconds.

    Raises Unfit, or CommandError where nothing more can be measured.
    """

    def step_alone(self, asked: StepAlone) -> float: ...
    def pass_alone(self, asked: PassAlone) -> float: ...
    def mixed_pass(self, asked: MixedPass) -> float: ...
    def beside(self, asked: Beside) -> tuple[float, float]:
        """Returns the times of a decode step and of a prefill pass."""

    def alternating(self, asked: Alternating) -> tuple[float, float]:
        """Returns the times of a decode step and of a prefill pass."""


@dataclass
class Recording:
    """The answers so far."""

    model: ModelShape
    gpu: ProfiledGpu
    steps: dict[tuple[int, int], dict[tuple[int, int], list[float]]] = field(default_factory=dict)
    """Milliseconds by (SMs of decode, SMs of prefill), then by (rows, context)."""
    passes: dict[tuple[int, int], dict[tuple[int, int], list[float]]] = field(default_factory=dict)
    """Milliseconds by (SMs of prefill, SMs of decode), then by (tokens, start)."""
    mixed: dict[tuple[int, int, int, int], list[float]] = field(default_factory=dict)
    """Milliseconds by (rows, context, tokens, start)."""
    turns: dict[tuple[int, int, int], list[tuple[float, float]]] = field(default_factory=dict)
    """Milliseconds of a step and of a pass, by (rows, context, tokens)."""
    buckets: Buckets = field(default_factory=Buckets)
    left_out: list[str] = field(default_factory=list)
    """Measurements that were not made, each with the reason."""
    done: int = 0
    """Measurements that were made."""
    made: Provenance = field(default_factory=provenance)

    def add_step(self, sms: int, other_sms: int, rows: int, context: int, ms: float) -> None:
        self.steps.setdefault((sms, other_sms), {}).setdefault((rows, context), []).append(ms)

    def add_pass(self, sms: int, other_sms: int, tokens: int, start: int, ms: float) -> None:
        self.passes.setdefault((sms, other_sms), {}).setdefault((tokens, start), []).append(ms)

    def add_mixed(self, rows: int, context: int, tokens: int, start: int, ms: float) -> None:
        self.mixed.setdefault((rows, context, tokens, start), []).append(ms)

    def add_turns(self, rows: int, context: int, tokens: int, ms: tuple[float, float]) -> None:
        self.turns.setdefault((rows, context, tokens), []).append(ms)

    def profile(self) -> Profile | None:
        """Returns the profile of what was measured; None: it is too little for one."""
        left_out = f" Left out: {'; '.join(self.left_out)}." if self.left_out else ""
        made = Profile(
            source=Source(recorded=True, how=HOW + left_out, sources=(), made=self.made),
            model=self.model,
            gpu=self.gpu,
            overheads=OVERHEADS,
            decode=tuple(
                DecodeTable(*pair, tuple(DecodePoint(*size, median(ms)) for size, ms in sorted(points.items())))
                for pair, points in sorted(self.steps.items())
            ),
            prefill=tuple(
                PrefillTable(*pair, tuple(PrefillPoint(*size, median(ms)) for size, ms in sorted(points.items())))
                for pair, points in sorted(self.passes.items())
            ),
            mixed=tuple(MixedPoint(*size, median(ms)) for size, ms in sorted(self.mixed.items())),
            turns=tuple(
                TurnsPoint(*size, *(median(of_one) for of_one in zip(*ms, strict=True)))
                for size, ms in sorted(self.turns.items())
            ),
            buckets=self.buckets,
        )
        try:
            check(made, "")
        except InputError:
            return None
        return made


def carry_out(
    schedule: Sequence[Measurement],
    machine: Machine,
    recording: Recording,
    clock: Clock,
    until_s: float,
    announce: Callable[[Measurement, Recording], None],
) -> None:
    """Makes one measurement after another until the clock says `until_s`; `announce` is called before each.

    Raises what the machine raises, except Unfit; the recording has what was measured by then.
    """
    for asked in schedule:
        if clock.now() >= until_s:
            left = len(schedule) - recording.done - len(recording.left_out)
            recording.left_out.append(f"{left} of {len(schedule)} measurements, for want of time")
            return
        announce(asked, recording)
        try:
            measure(asked, machine, recording)
            recording.done += 1
        except Unfit as error:
            recording.left_out.append(f"{asked}: {error}")


def measure(asked: Measurement, machine: Machine, recording: Recording) -> None:
    """Makes one measurement and adds it to the recording."""
    match asked:
        case StepAlone(sms, rows, context):
            recording.add_step(sms, 0, rows, context, machine.step_alone(asked))
        case PassAlone(sms, tokens, start):
            recording.add_pass(sms, 0, tokens, start, machine.pass_alone(asked))
        case MixedPass(_, rows, context, tokens, start):
            recording.add_mixed(rows, context, tokens, start, machine.mixed_pass(asked))
        case Alternating(rows, context, tokens):
            recording.add_turns(rows, context, tokens, machine.alternating(asked))
        case Beside(decode_sms, prefill_sms, rows, context, tokens):
            step_ms, pass_ms = machine.beside(asked)
            recording.add_step(decode_sms, prefill_sms, rows, context, step_ms)
            recording.add_pass(prefill_sms, decode_sms, tokens, 0, pass_ms)
