"""A policy's view of a server: its state at one moment, immutable. All times are in seconds on one clock."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, overload

from semipd.core.config import pages_for
from semipd.core.latency import NOMINAL, LatencyModel
from semipd.core.partition import FULL, Mode, Phase, Shares
from semipd.core.request import Slo
from semipd.core.sms import NOMINAL_SMS, splits

SequenceId = int
"""Names one sequence (a sample of a request) for the life of a server; rises with arrival."""


@dataclass(frozen=True, slots=True)
class WaitingSequence:
    """Accepted, and its first token not yet sampled (or preempted, and to be computed again)."""

    sequence: SequenceId
    request_id: str
    arrival_s: float
    prompt_tokens: int
    """Tokens to compute before the next one is sampled: the prompt, and for a preempted sequence its output so far."""
    computed_tokens: int
    """Tokens of `prompt_tokens` whose KV is in the pool."""
    in_flight_tokens: int
    """Tokens of the rest in a prefill batch that the worker has not answered. While above 0 it can't be planned."""
    output_tokens: int
    """Sampled before a preemption; 0 for a new sequence."""
    max_tokens: int
    priority: int
    slo: Slo
    deadline_s: float | None
    """The moment after which the client no longer waits."""
    preemptions: int = 0

    @property
    def remaining_tokens(self) -> int:
        return self.prompt_tokens - self.computed_tokens - self.in_flight_tokens


class RunningSequence(NamedTuple):
    """A sequence that is in the decode batch, or ready for it.

    It is a named tuple because hundreds are made for each snapshot, and a frozen dataclass takes five times as long.
    """

    sequence: SequenceId
    request_id: str
    arrival_s: float
    first_token_s: float
    last_token_s: float
    context_tokens: int
    output_tokens: int
    max_tokens: int
    priority: int
    slo: Slo


class Running(Sequence[RunningSequence]):
    """`Snapshot.running` of a server: the sequences are made when somebody looks at more than how many there are.

    Hundreds run, and policies seldom look at them. It compares equal to a tuple of the same sequences.
    """

    __slots__ = ("_count", "_made", "_make")

    def __init__(self, count: int, make: Callable[[], Iterable[RunningSequence]]) -> None:
        """`make` gives `count` of them, at any later time as they are now."""
        self._count = count
        self._make = make
        self._made: tuple[RunningSequence, ...] | None = None

    def _tuple(self) -> tuple[RunningSequence, ...]:
        if self._made is None:
            self._made = tuple(self._make())
        return self._made

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[RunningSequence]:
        return iter(self._tuple())

    @overload
    def __getitem__(self, at: int) -> RunningSequence: ...
    @overload
    def __getitem__(self, at: slice) -> tuple[RunningSequence, ...]: ...
    def __getitem__(self, at: int | slice) -> RunningSequence | tuple[RunningSequence, ...]:
        return self._tuple()[at]

    def __eq__(self, other: object) -> bool:
        return self._tuple() == (other._tuple() if isinstance(other, Running) else other)

    def __repr__(self) -> str:
        return repr(self._tuple())


@dataclass(frozen=True, slots=True)
class PageUse:
    free: int
    total: int
    page_size: int
    """Tokens."""

    def pages_for(self, tokens: int) -> int:
        return pages_for(tokens, self.page_size)


@dataclass(frozen=True, slots=True)
class Step:
    """One prefill batch or decode step, as it was observed."""

    phase: Phase
    end_s: float
    duration_s: float
    sequences: int
    tokens: int
    """Prefill: prompt tokens computed. Decode: tokens sampled."""
    context_tokens: int
    """Tokens attended to, over the batch."""
    shares: Shares
    mode: Mode = Mode.SPLIT


@dataclass(frozen=True, slots=True)
class FirstToken:
    """A TTFT as it was observed."""

    at_s: float
    ttft_s: float
    prompt_tokens: int
    slo: Slo


@dataclass(frozen=True, slots=True)
class Completion:
    """A sequence that ended; `tpot_s` is None below two output tokens."""

    at_s: float
    tpot_s: float | None
    output_tokens: int
    slo: Slo


@dataclass(frozen=True, slots=True)
class Observed:
    """The latest observations, oldest first; each tuple is bounded by the server (256 entries)."""

    steps: tuple[Step, ...] = ()
    first_tokens: tuple[FirstToken, ...] = ()
    completions: tuple[Completion, ...] = ()


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of the engine. A plan beyond them is refused."""

    max_batch_tokens: int
    """Prompt tokens in one prefill batch."""
    max_running: int
    """Sequences in the decode batch."""
    modes: frozenset[Mode] = frozenset({Mode.SPLIT})
    decode_capture_sizes: tuple[int, ...] = ()
    """Sizes that a decode step is padded to, ascending: with 385 sequences it may cost as much as with 512. Empty: none
    are known."""
    latency: LatencyModel = NOMINAL
    """The expected times of passes and steps on this device with this model, before anything was observed."""
    splits: tuple[Shares, ...] = splits(NOMINAL_SMS, step=1)
    """The shares that the device can be divided into. The one that leaves prefill most comes first, the undivided
    device (`FULL`) comes last. Where it can't be divided, `FULL` stands alone."""
    sms: int = NOMINAL_SMS
    """Streaming multiprocessors of the device; of a CPU, its cores."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    now_s: float
    waiting: tuple[WaitingSequence, ...]
    """Ordered by arrival."""
    running: Sequence[RunningSequence]
    """Ordered by arrival; immutable."""
    pages: PageUse
    limits: Limits
    shares: Shares = FULL
    """The shares that are granted now."""
    mode: Mode = Mode.SPLIT
    prefill_batches: int = 0
    """Plans that the prefill worker has and has not answered."""
    observed: Observed = Observed()
