"""What `semipd profile` measures, in which order, and how a profile is made of the answers. Needs no GPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from statistics import median
from typing import Protocol

from semipd.bench.provenance import provenance
from semipd.core.clock import Clock
from semipd.core.errors import InputError
from semipd.core.provenance import Provenance
from semipd.core.sms import decode_choices
from semipd.profiles.profile import (
    Buckets,
    DecodePoint,
    DecodeTable,
    Gpu,
    MixedPoint,
    ModelShape,
    Overheads,
    PrefillPoint,
    PrefillTable,
    Profile,
    Source,
    TurnsPoint,
    check,
)

OVERHEADS = Overheads(arrive_s=0.0005, turnaround_s=0.0008, prepare_s=0.0008, deliver_s=0.002, handover_s=0.0004)
"""Of the server on one H200's host: together with the pass they make the TTFT that was measured of a request alone.

`handover_s` is the gap alone: about 0.3 ms were measured between a pass's end and the next step's launch. Profiles of
bursts, at a higher clock than a server has under load, had 0.9 ms to make up for that; what `Alternating` measures is
in place of it."""

MOST_TOKENS = 560_000
"""Of a decode batch, context and all: what fits beside two copies of the weights in 139 GiB, for Llama-3-8B."""


@dataclass(frozen=True, slots=True)
class StepAlone:
    """A decode step of `rows` sequences at `context` tokens each, on so many SMs, prefill idle."""

    sms: int
    rows: int
    context: int


@dataclass(frozen=True, slots=True)
class PassAlone:
    """A prefill pass over `tokens` tokens of one prompt after `start` others, decode idle."""

    sms: int
    tokens: int
    start: int


@dataclass(frozen=True, slots=True)
class Beside:
    """Both all the time: decode on the first, prefill on the last so many SMs."""

    decode_sms: int
    prefill_sms: int
    rows: int
    context: int
    tokens: int


@dataclass(frozen=True, slots=True)
class MixedPass:
    """A decode step on so many SMs, prefill idle, that takes along `tokens` tokens of a prompt after `start` others."""

    sms: int
    rows: int
    context: int
    tokens: int
    start: int


@dataclass(frozen=True, slots=True)
class Alternating:
    """One decode step and one prefill pass over a prompt by turns, without a pause, on the whole device."""

    rows: int
    context: int
    tokens: int


Task = StepAlone | PassAlone | Beside | MixedPass | Alternating

TURNS = [(256, 512, 512), (64, 1024, 512), (256, 512, 1024)]
MORE_TURNS = [(16, 1024, 1024), (384, 512, 512), (256, 512, 256), (128, 512, 512)]
"""Rows, context, tokens: as where a server that takes turns is near saturation, and small batches."""
MOST_TURN_TOKENS = max(tokens for _, _, tokens in TURNS + MORE_TURNS)


class Unfit(Exception):
    """A task that this device can't do: its size does not fit. The message says why."""


class Machine(Protocol):
    """Does the tasks; milliseconds. Raises Unfit, or CommandError where nothing more can be measured."""

    def step_alone(self, task: StepAlone) -> float: ...
    def pass_alone(self, task: PassAlone) -> float: ...
    def mixed_pass(self, task: MixedPass) -> float: ...
    def beside(self, task: Beside) -> tuple[float, float]:
        """Of a decode step and of a prefill pass."""

    def alternating(self, task: Alternating) -> tuple[float, float]:
        """Of a decode step and of a prefill pass."""


def tasks(sms: int, max_context: int, *, quick: bool) -> list[Task]:
    """The most telling first. What a profile can't do without is before all else."""
    steps = [(64, 1024), (64, 4096), (1, 512), (16, 1024), (128, 1024), (256, 512), (512, 256)]
    passes = [(2048, 0), (256, 0), (512, 0), (1024, 0), (512, 3584), (64, 0), (4096, 0), (7680, 0)]
    pairings = [(64, 1024, 2048), (128, 1024, 512)]
    turns = TURNS if quick else TURNS + MORE_TURNS
    mixed = [(64, 512, 512), (64, 512, 2048), (256, 512, 512), (16, 512, 512), (256, 512, 2048), (64, 512, 1024)]
    if not quick:
        steps += [(32, 1024), (96, 1024), (192, 512), (8, 4096), (128, 4096), (384, 512), (256, 2048), (16, 256)]
        steps += [(320, 512), (448, 512)]
        passes += [(128, 0), (384, 0), (768, 0), (1536, 0), (3072, 0), (1024, 3072), (2048, 5120), (128, 1024)]
        passes += [(320, 0), (448, 0), (640, 0)]
        pairings += [(256, 512, 512), (64, 4096, 1024), (16, 1024, 256)]
        mixed += [(64, 512, 256), (16, 512, 1024), (256, 512, 1024), (16, 512, 256), (256, 512, 256), (16, 512, 2048)]
        mixed += [(64, 512, 64), (64, 4096, 512), (128, 2048, 1024)]
    steps = [(rows, context) for rows, context in steps if context <= max_context and rows * context <= MOST_TOKENS]
    passes = [(tokens, start) for tokens, start in passes if tokens + start <= max_context]
    pairings = [one for one in pairings if max(one[1:]) <= max_context]
    alone = [(*size, 0) for size in mixed if max(size[1:]) <= max_context]
    alone += [] if quick or max_context < 4096 else [(64, 512, 512, 3584), (64, 512, 1024, 3072)]
    splits = [(n, sms - n) for n in decode_choices(sms) if n < sms]
    pairs = [*splits[1::2], *splits[::2], (sms, sms)]
    if not quick:
        pairs.append((sms, splits[len(splits) // 2][1]) if splits else (sms, sms))
    pairs = list(dict.fromkeys(pairs))
    reference: list[Task] = [StepAlone(sms, *step) for step in steps[:4]]
    reference += [PassAlone(sms, *one) for one in passes[:5]]
    beside: list[Task] = [Beside(*pair, *one) for one in pairings for pair in pairs]
    rest: list[Task] = [*(StepAlone(sms, *step) for step in steps[4:]), *(PassAlone(sms, *one) for one in passes[5:])]
    fewer: list[Task] = [PassAlone(p, *one) for one in ((2048, 0), (256, 0)) if one in passes for _, p in splits]
    fewer += [StepAlone(d, *step) for step in steps[:1] + ([] if quick else steps[1:4]) for d, _ in splits]
    together: list[Task] = [MixedPass(sms, *size) for size in alone]
    by_turns: list[Task] = [Alternating(*one) for one in turns if max(one[1:]) <= max_context]
    return [*reference, *_interleaved(beside, rest, together, by_turns), *fewer]


def _interleaved(*lists: Sequence[Task]) -> list[Task]:
    return [task for one_each in zip_longest(*lists) for task in one_each if task is not None]


@dataclass
class Recording:
    """The answers so far."""

    model: ModelShape
    gpu: Gpu
    steps: dict[tuple[int, int], dict[tuple[int, int], list[float]]] = field(default_factory=dict)
    """By SMs of the phase and of the other, then by rows and context: milliseconds."""
    passes: dict[tuple[int, int], dict[tuple[int, int], list[float]]] = field(default_factory=dict)
    mixed: dict[tuple[int, int, int, int], list[float]] = field(default_factory=dict)
    """By rows, context, tokens and start."""
    turns: dict[tuple[int, int, int], list[tuple[float, float]]] = field(default_factory=dict)
    """By rows, context and tokens: of a step and of a pass."""
    buckets: Buckets = field(default_factory=Buckets)
    left_out: list[str] = field(default_factory=list)
    done: int = 0
    made: Provenance = field(default_factory=provenance)

    def step(self, sms: int, other_sms: int, rows: int, context: int, ms: float) -> None:
        self.steps.setdefault((sms, other_sms), {}).setdefault((rows, context), []).append(ms)

    def batch(self, sms: int, other_sms: int, tokens: int, start: int, ms: float) -> None:
        self.passes.setdefault((sms, other_sms), {}).setdefault((tokens, start), []).append(ms)

    def mixed_pass(self, rows: int, context: int, tokens: int, start: int, ms: float) -> None:
        self.mixed.setdefault((rows, context, tokens, start), []).append(ms)

    def by_turns(self, rows: int, context: int, tokens: int, ms: tuple[float, float]) -> None:
        self.turns.setdefault((rows, context, tokens), []).append(ms)

    def profile(self) -> Profile | None:
        """None: too little is known yet."""
        made = Profile(
            source=Source(
                recorded=True,
                how="Recorded by `semipd profile`: medians of work without a pause, at the clock that the GPU then "
                "keeps; alone and by turns in one process, side by side in two under MPS. "
                "Overheads are the server's constants and were not measured here."
                + (f" Left out: {'; '.join(self.left_out)}." if self.left_out else ""),
                sources=(),
                made=self.made,
            ),
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
    todo: Sequence[Task],
    machine: Machine,
    recording: Recording,
    clock: Clock,
    until_s: float,
    tell: Callable[[Task, Recording], None],
) -> None:
    """Does one task after another until the clock says `until_s`; `tell` hears of each before it is done.

    Raises what the machine raises, but Unfit; the recording has what was measured by then.
    """
    for task in todo:
        if clock.now() >= until_s:
            left = len(todo) - recording.done - len(recording.left_out)
            recording.left_out.append(f"{left} of {len(todo)} measurements, for want of time")
            return
        tell(task, recording)
        try:
            measure(task, machine, recording)
            recording.done += 1
        except Unfit as error:
            recording.left_out.append(f"{task}: {error}")


def measure(task: Task, machine: Machine, recording: Recording) -> None:
    match task:
        case StepAlone(sms, rows, context):
            recording.step(sms, 0, rows, context, machine.step_alone(task))
        case PassAlone(sms, tokens, start):
            recording.batch(sms, 0, tokens, start, machine.pass_alone(task))
        case MixedPass(_, rows, context, tokens, start):
            recording.mixed_pass(rows, context, tokens, start, machine.mixed_pass(task))
        case Alternating(rows, context, tokens):
            recording.by_turns(rows, context, tokens, machine.alternating(task))
        case Beside(decode_sms, prefill_sms, rows, context, tokens):
            step_ms, pass_ms = machine.beside(task)
            recording.step(decode_sms, prefill_sms, rows, context, step_ms)
            recording.batch(prefill_sms, decode_sms, tokens, 0, pass_ms)
