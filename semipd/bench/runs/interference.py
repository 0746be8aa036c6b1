"""Measures what long prompts do to readers: the gaps between tokens of a steady decode batch, without and with prompts.

The batch is a number of sequences that are always there: when one ends another takes its place, in both halves alike.
First it decodes alone. Then prompts arrive at a fixed rate, evenly spaced, whatever the server makes of them. A gap
belongs to the half in which it ends. What the prompts had to wait is reported beside it, since a server could spare the
batch by leaving the prompts alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from random import Random

from semipd.bench.arrivals import TraceArrival
from semipd.bench.errors import InputError, RunFailed
from semipd.bench.scoring.records import UNFINISHED, Outcome, RequestRecord
from semipd.bench.scoring.score import Distribution, distribution
from semipd.bench.traces import with_slo

FULL = 0.9
"""Share of the batch that has to be decoding on average: a place is empty while its next prompt is computed."""

STEADY = 0.95
"""Share of the sequences that decoded without prompts which must decode with them, too."""

FASTEST_S = 0.002
"""Least seconds between two tokens of a sequence. It bounds how many sequences are written down before the start."""


@dataclass(frozen=True, slots=True)
class InterferenceSettings:
    """Lengths in tokens. Each half lasts `duration_s`, after `settle_s` in which nothing is measured."""

    target: str
    decoding: int = 64
    context: int = 512
    """Prompt of each sequence of the batch."""
    output_tokens: int = 1024
    """Output of each sequence of the batch, before another takes its place."""
    prompt_tokens: int = 4000
    prompt_output: int = 16
    """Output of each long prompt."""
    prompt_rate: float = 2.0
    """Long prompts a second."""
    duration_s: float = 30.0
    settle_s: float = 5.0
    """Seconds in which the batch fills, before anything is measured."""
    seed: int = 0
    clients: int | None = None
    model: str | None = None
    vocab_size: int | None = None

    def __post_init__(self) -> None:
        for name in ("decoding", "context", "prompt_tokens", "prompt_output"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}: must be at least 1, got {getattr(self, name)}")
        if self.output_tokens < 2:
            raise InputError(f"output_tokens: a gap needs two tokens, got {self.output_tokens}")
        for name in ("prompt_rate", "duration_s", "settle_s"):
            if not 0 < getattr(self, name) < math.inf:
                raise InputError(f"{name}: must be above 0, got {getattr(self, name)}")
        if self.prompt_rate * self.duration_s < 1:
            raise InputError(f"no prompt arrives within {self.duration_s:g} s at {self.prompt_rate:g} a second")


@dataclass(frozen=True, slots=True)
class MeasuredWindow:
    """Seconds after the start; `end_s` is no longer in it."""

    start_s: float
    end_s: float

    def __contains__(self, at_s: float) -> bool:
        return self.start_s <= at_s < self.end_s


@dataclass(frozen=True, slots=True)
class InterferenceHalf:
    """`sequences` is the mean number that were decoding: it shows that both halves had the same batch."""

    gaps_s: Distribution
    sequences: float
    tokens_per_s: float


@dataclass(frozen=True, slots=True)
class PromptDelays:
    """The long prompts of the second half. Latencies are those of prompts that were done."""

    sent: int
    done: int
    ttft_s: Distribution | None


@dataclass(frozen=True, slots=True)
class Interference:
    """The ratios are with prompts to without."""

    alone: InterferenceHalf
    with_prompts: InterferenceHalf
    prompts: PromptDelays

    @property
    def p50_ratio(self) -> float:
        return ratio(self.with_prompts.gaps_s.p50, self.alone.gaps_s.p50)

    @property
    def p99_ratio(self) -> float:
        return ratio(self.with_prompts.gaps_s.p99, self.alone.gaps_s.p99)

    @property
    def max_ratio(self) -> float:
        return ratio(self.with_prompts.gaps_s.max, self.alone.gaps_s.max)

    @property
    def steady(self) -> bool:
        """True where the second half decoded (nearly) as many sequences as the first. Where it did not, because new
        ones had to queue behind the prompts, its gaps are those of a smaller batch and flatter the server."""
        return self.with_prompts.sequences >= STEADY * self.alone.sequences


def ratio(value: float, base: float) -> float:
    """Gaps below a nanosecond are not told apart by any clock here."""
    return value / max(base, 1e-9)


def windows(settings: InterferenceSettings) -> tuple[MeasuredWindow, MeasuredWindow]:
    """Returns the window without prompts and the window with them."""
    begin, length = settings.settle_s, settings.duration_s
    return MeasuredWindow(begin, begin + length), MeasuredWindow(begin + length, begin + 2 * length)


def turns(settings: InterferenceSettings) -> int:
    """Sequences that may take one place after another."""
    _, loaded = windows(settings)
    return 2 + math.ceil(loaded.end_s / (settings.output_tokens * FASTEST_S))


def first_outputs(settings: InterferenceSettings) -> list[int]:
    """Output of the first sequence of each place in the batch: even from a little to all, in random order, so that the
    places aren't filled anew all at once."""
    count, longest = settings.decoding, settings.output_tokens
    lengths = [max(2, math.ceil(longest * (place + 1) / count)) for place in range(count)]
    Random(settings.seed).shuffle(lengths)
    return lengths


def batch_chains(settings: InterferenceSettings) -> list[tuple[TraceArrival, ...]]:
    """Returns, for each place in the batch, the sequences that take it one after another."""
    return [
        tuple(
            arrival(place + number * settings.decoding, 0.0, settings.context, first if not number else None, settings)
            for number in range(turns(settings))
        )
        for place, first in enumerate(first_outputs(settings))
    ]


def prompt_arrivals(settings: InterferenceSettings) -> list[TraceArrival]:
    """Evenly spaced over the second half."""
    _, loaded = windows(settings)
    begin = settings.decoding * turns(settings)
    return [
        arrival(
            begin + i,
            loaded.start_s + i / settings.prompt_rate,
            settings.prompt_tokens,
            settings.prompt_output,
            settings,
        )
        for i in range(math.ceil(settings.prompt_rate * settings.duration_s))
    ]


def arrival(
    index: int, at_s: float, prompt_len: int, output_len: int | None, settings: InterferenceSettings
) -> TraceArrival:
    """`output_len`: that of the batch's sequences, if absent."""
    return TraceArrival(index, at_s, with_slo(prompt_len, settings.output_tokens if output_len is None else output_len))


def gaps_within(records: Iterable[RequestRecord], window: MeasuredWindow) -> tuple[float, ...]:
    """Returns the gaps between two messages with tokens that end in the window."""
    return tuple(
        after - before
        for record in records
        for (before, _), (after, _) in pairwise(record.token_times())
        if after in window
    )


def half(records: Sequence[RequestRecord], window: MeasuredWindow, name: str) -> InterferenceHalf:
    """Raises RunFailed where no token came in the window."""
    gaps = distribution(gaps_within(records, window))
    if gaps is None:
        raise RunFailed(f"{name}: no tokens came from the decode batch, so there is nothing to compare")
    length = window.end_s - window.start_s
    decoding = sum(
        max(0.0, min(r.last_s, window.end_s) - max(r.first_s, window.start_s))
        for r in records
        if r.first_s is not None and r.last_s is not None
    )
    tokens = sum(count for r in records for at, count in r.token_times() if at in window)
    return InterferenceHalf(gaps, decoding / length, tokens / length)


def interference(records: Sequence[RequestRecord], settings: InterferenceSettings) -> Interference:
    """Scores all requests of a run; indexes tell batch and prompts apart.

    Raises RunFailed where there was no steady batch before the prompts (a sequence was refused or failed, the places
    were not all taken, outputs were so short that the sequences ran out), or where no prompt was done.
    """
    alone, loaded = windows(settings)
    first_prompt = settings.decoding * turns(settings)
    batch = [record for record in records if record.index < first_prompt]
    prompts = [record for record in records if record.index >= first_prompt]
    for record in batch:
        if record.outcome is not Outcome.DONE and record.reason != UNFINISHED:  # given up by the client, at the end
            raise RunFailed(f"a sequence of the decode batch was {record.outcome.value}: {record.reason}")
        if record.index // settings.decoding == turns(settings) - 1:
            raise RunFailed(f"outputs of {settings.output_tokens} tokens are too short to keep a batch going")
    first = half(batch, alone, "without prompts")
    if first.sequences < FULL * settings.decoding:
        raise RunFailed(
            f"only {first.sequences:.1f} of {settings.decoding} sequences were decoding before the prompts came: the "
            "server doesn't take so many at once, the batch needs longer to fill (--settle), or the sequences are too "
            "short (--output-tokens)"
        )
    done = [r for r in prompts if r.outcome is Outcome.DONE]
    if not done:
        reason = next((r.reason for r in prompts), "none was sent")
        raise RunFailed(f"not one of the long prompts was answered, so there is nothing to compare: {reason}")
    ttft = distribution(r.ttft_s for r in done if r.ttft_s is not None)
    second = half(batch, loaded, "with prompts")
    return Interference(first, second, PromptDelays(len(prompts), len(done), ttft))
