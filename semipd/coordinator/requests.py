"""The requests: every accepted request from its arrival to its end, and the journal of what its client was promised.

A request has one sequence for each of its samples. A sequence is

    WAITING ──▶ PREFILLING ──▶ READY ──▶ DECODING ──▶ closed
       ▲             │           │           │
       └─────────────┴───────────┴───────────┘   preempted, or its pages were lost: computed again from the journal

The requests does no I/O and reads no clock.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field, replace
from enum import Enum

from semipd.core.errors import DuplicateRequest, QueueFull
from semipd.core.request import Delta, End, Logprob, Request, SamplingParams, Timings
from semipd.core.snapshot import RunningSequence, SequenceId, WaitingSequence

SEED_MODULUS = 2**64


class Stage(Enum):
    WAITING = "waiting"
    PREFILLING = "prefilling"
    """A chunk of it is with the prefill worker."""
    READY = "ready"
    """Its last token is sampled and delivered; the decode batch has had no room yet."""
    DECODING = "decoding"


@dataclass(frozen=True, slots=True)
class Ticket:
    """Names a request on one gateway's link."""

    gateway: bytes
    number: int


@dataclass(slots=True, eq=False)
class SequenceState:
    """One sample of a request. Only the requests and the coordinator's hands change it."""

    number: SequenceId
    entry: RequestEntry
    index: int
    sampling: SamplingParams
    stage: Stage = Stage.WAITING
    lease: int | None = None
    """Its pages in the account; None: it has none."""
    computed: int = 0
    """Tokens whose KV is in the pool."""
    in_flight: int = 0
    """Tokens with the prefill worker."""
    output: list[int] = field(default_factory=list)
    """The journal: every token that was sent to the client."""
    first_token_s: float = 0.0
    last_token_s: float = 0.0
    prefill_start_s: float | None = None
    preemptions: int = 0
    strikes: int = 0
    """Of worker deaths in which it took part without progress since; see `recovery`."""

    @property
    def to_compute(self) -> int:
        """Tokens whose KV must be there before the next token can be sampled."""
        return len(self.entry.request.prompt) + len(self.output)

    def tokens(self, start: int, count: int) -> list[int]:
        """Of the prompt followed by the journal."""
        prompt = self.entry.request.prompt
        if start + count <= len(prompt):
            return list(prompt[start : start + count])
        return [*prompt[start:], *self.output[max(0, start - len(prompt)) : start + count - len(prompt)]]

    def as_waiting(self) -> WaitingSequence:
        request = self.entry.request
        return WaitingSequence(
            sequence=self.number,
            request_id=request.request_id,
            arrival_s=self.entry.arrival_s,
            prompt_tokens=self.to_compute,
            computed_tokens=self.computed,
            in_flight_tokens=self.in_flight,
            output_tokens=len(self.output),
            max_tokens=request.stopping.max_tokens,
            priority=request.priority,
            slo=request.slo,
            deadline_s=self.entry.deadline_s,
            preemptions=self.preemptions,
        )

    def as_running(self, output_tokens: int, last_token_s: float) -> RunningSequence:
        """As it was when it had so many tokens and the last of them came."""
        request = self.entry.request
        return RunningSequence(
            sequence=self.number,
            request_id=request.request_id,
            arrival_s=self.entry.arrival_s,
            first_token_s=self.first_token_s,
            last_token_s=last_token_s,
            context_tokens=len(request.prompt) + output_tokens,
            output_tokens=output_tokens,
            max_tokens=request.stopping.max_tokens,
            priority=request.priority,
            slo=request.slo,
        )

    def last_delta(self, logprob: Logprob | None, end: End | None) -> Delta:
        """Tells its client the token that was recorded last."""
        logprobs = () if logprob is None else (logprob,)
        timings = self.timings() if end else None
        return Delta(self.index, len(self.output) - 1, (self.output[-1],), logprobs, end, timings)

    def timings(self) -> Timings:
        arrival = self.entry.arrival_s
        if not self.output or self.prefill_start_s is None:
            return Timings(self.last_token_s - arrival if self.output else 0.0, 0.0, 0.0, 0.0)
        return Timings(
            queue_s=self.prefill_start_s - arrival,
            prefill_s=self.first_token_s - self.prefill_start_s,
            ttft_s=self.first_token_s - arrival,
            decode_s=self.last_token_s - self.first_token_s,
        )


@dataclass(slots=True, eq=False)
class RequestEntry:
    """One request."""

    ticket: Ticket
    request: Request
    arrival_s: float
    live: dict[int, SequenceState] = field(default_factory=dict)
    """Its sequences that have not ended, by index."""

    @property
    def deadline_s(self) -> float | None:
        limit = self.request.deadline_s
        return None if limit is None else self.arrival_s + limit

    @property
    def time_limit_s(self) -> float | None:
        limit = self.request.time_limit_s
        return None if limit is None else self.arrival_s + limit

    @property
    def started(self) -> bool:
        """Whether any of its prompt was given to a worker."""
        return any(s.prefill_start_s is not None for s in self.live.values())


class Gap(Exception):
    """A token came whose predecessor did not: a message was lost, and the sequence must be computed again."""


class RequestTable:
    """Raises DuplicateRequest and QueueFull at `admit`; nothing else here fails on good input."""

    def __init__(self, max_waiting: int) -> None:
        self._max_waiting = max_waiting
        self._entries: dict[Ticket, RequestEntry] = {}
        self._ids: dict[str, RequestEntry] = {}
        self._sequences: dict[SequenceId, SequenceState] = {}
        self._leases: dict[int, SequenceState] = {}
        self._next: SequenceId = 0

    def __len__(self) -> int:
        """Requests alive."""
        return len(self._entries)

    def preview(self, request: Request, ticket: Ticket, now: float) -> SequenceState:
        """The request's first sequence as `admit` would make it, for the policy to look at."""
        self._refuse_if_unfit(request)
        return SequenceState(self._next, RequestEntry(ticket, request, now), 0, request.sampling)

    def admit(self, request: Request, ticket: Ticket, now: float) -> RequestEntry:
        self._refuse_if_unfit(request)
        entry = RequestEntry(ticket, request, now)
        for index in range(request.samples):
            seed = (request.sampling.seed + index) % SEED_MODULUS
            sequence = SequenceState(self._next, entry, index, replace(request.sampling, seed=seed))
            self._next += 1
            entry.live[index] = self._sequences[sequence.number] = sequence
        self._entries[ticket] = self._ids[request.request_id] = entry
        return entry

    def _refuse_if_unfit(self, request: Request) -> None:
        if request.request_id in self._ids:
            raise DuplicateRequest(f"request_id: {request.request_id!r} is alive; choose another or wait for its end")
        waiting = self.count(Stage.WAITING)
        if waiting + request.samples > self._max_waiting:
            raise QueueFull(f"{waiting} sequences wait already, {self._max_waiting} at most", retry_after_s=1.0)

    def find(self, ticket: Ticket) -> RequestEntry | None:
        return self._entries.get(ticket)

    def find_id(self, request_id: str) -> RequestEntry | None:
        return self._ids.get(request_id)

    def get(self, number: SequenceId) -> SequenceState | None:
        return self._sequences.get(number)

    def by_lease(self, lease: int) -> SequenceState | None:
        return self._leases.get(lease)

    def entries(self) -> list[RequestEntry]:
        return list(self._entries.values())

    def sequences(self, *stages: Stage) -> Iterator[SequenceState]:
        """Those in one of the stages, by arrival."""
        return (s for s in self._sequences.values() if s.stage in stages)

    def all_sequences(self) -> Collection[SequenceState]:
        """By arrival."""
        return self._sequences.values()

    def count(self, *stages: Stage) -> int:
        return sum(s.stage in stages for s in self._sequences.values())

    def suspect(self, *stages: Stage) -> bool:
        """Whether a sequence in one of the stages took part in a worker's death. One such at a time is with a worker,
        of both together: they die together of a fault on the GPU, which doesn't say whose it was."""
        return any(s.strikes for s in self.sequences(*stages))

    def give_lease(self, sequence: SequenceState, lease: int) -> None:
        sequence.lease = lease
        self._leases[lease] = sequence

    def take_lease(self, sequence: SequenceState) -> int | None:
        """The sequence has no pages from now on; its former lease."""
        lease, sequence.lease = sequence.lease, None
        if lease is not None:
            del self._leases[lease]
        return lease

    def start_over(self, sequence: SequenceState) -> None:
        """Its pages are gone: prompt and journal are computed again. The client notices a pause, nothing else."""
        self.take_lease(sequence)
        sequence.stage = Stage.WAITING
        sequence.computed = sequence.in_flight = 0

    def record(self, sequence: SequenceState, position: int, token: int, now: float) -> bool:
        """Journals one token, which the client is then to be told; False: the journal has it already. Raises Gap."""
        known = len(sequence.output)
        if position < known:
            return False
        if position > known:
            raise Gap(f"token {position} came and {known} are known")
        sequence.output.append(token)
        sequence.strikes = 0
        sequence.last_token_s = now
        if position == 0:
            sequence.first_token_s = now
        return True

    def close(self, sequence: SequenceState) -> bool:
        """The sequence ended. Whether that ended its request. The caller has seen to its lease."""
        self.take_lease(sequence)
        self._sequences.pop(sequence.number, None)
        sequence.entry.live.pop(sequence.index, None)
        if sequence.entry.live:
            return False
        self.forget(sequence.entry)
        return True

    def forget(self, entry: RequestEntry) -> None:
        """The request is over, with all that is left of it. The caller has seen to the leases."""
        for sequence in entry.live.values():
            self.take_lease(sequence)
            self._sequences.pop(sequence.number, None)
        entry.live.clear()
        self._entries.pop(entry.ticket, None)
        self._ids.pop(entry.request.request_id, None)
