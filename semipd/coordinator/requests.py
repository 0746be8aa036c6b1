"""The request table: every accepted request from its arrival to its end, with a journal of the tokens sent.

A request has one sequence for each of its samples. A sequence is

    WAITING ──▶ PREFILLING ──▶ READY ──▶ DECODING ──▶ closed
       ▲             │           │           │
       └─────────────┴───────────┴───────────┘   preempted, or its pages were lost: computed again from the journal

The table does no I/O and reads no clock.
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
    """The stages between the arrival of a sequence and its end."""

    WAITING = "waiting"
    PREFILLING = "prefilling"
    """A chunk of it is with the worker that computes prompts."""
    READY = "ready"
    """Its latest token is sampled and delivered; it waits for room in the decode batch."""
    DECODING = "decoding"


@dataclass(frozen=True, slots=True)
class Ticket:
    """Names a request on one gateway's link."""

    gateway: bytes
    number: int


@dataclass(slots=True, eq=False)
class SequenceState:
    """One sample of a request. Only the request table, the coordinator's state and its dispatchers change it."""

    number: SequenceId
    entry: RequestEntry
    index: int
    sampling: SamplingParams
    stage: Stage = Stage.WAITING
    lease: int | None = None
    """The lease on its pages. None: it has no pages."""
    computed: int = 0
    """Tokens whose KV is in the pool."""
    in_flight: int = 0
    """Tokens of the chunk that is with a worker; 0: none."""
    output: list[int] = field(default_factory=list)
    """The journal: every token that was sent to the client."""
    first_token_s: float = 0.0
    last_token_s: float = 0.0
    prefill_start_s: float | None = None
    preemptions: int = 0
    held: bool = False
    """True while a plan holds it back: it is ready or in the decode batch, and no step takes it along."""
    strikes: int = 0
    """Points for the worker deaths in which it took part since its last progress; see `recovery`."""

    @property
    def to_compute(self) -> int:
        """Number of tokens whose KV must be in the pool before the next token can be sampled."""
        return len(self.entry.request.prompt) + len(self.output)

    def tokens(self, start: int, count: int) -> list[int]:
        """Returns `count` tokens from place `start` of the prompt followed by the journal."""
        prompt = self.entry.request.prompt
        if start + count <= len(prompt):
            return list(prompt[start : start + count])
        return [*prompt[start:], *self.output[max(0, start - len(prompt)) : start + count - len(prompt)]]

    def as_waiting(self) -> WaitingSequence:
        """Describes the sequence to the policy as one that waits."""
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
        """Describes the sequence as it was when it had `output_tokens` tokens, the last of which came at
        `last_token_s`."""
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
        """Returns the delta that tells the client the token that was recorded last."""
        logprobs = () if logprob is None else (logprob,)
        timings = self.timings() if end else None
        return Delta(self.index, len(self.output) - 1, (self.output[-1],), logprobs, end, timings)

    def timings(self) -> Timings:
        """Returns how long the stages took. Stages that the sequence has not reached count 0 s."""
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
    """One request that was accepted and has not ended."""

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
        """True if a part of its prompt was sent to a worker."""
        return any(s.prefill_start_s is not None for s in self.live.values())


class TokenGap(Exception):
    """Raised when a token comes whose predecessor did not: a message was lost. The sequence must be computed again."""


class RequestTable:
    """All requests that were accepted and have not ended. Raises DuplicateRequest and QueueFull at `admit`; no other
    method fails on good input."""

    def __init__(self, max_waiting: int) -> None:
        """`max_waiting` is the number of sequences that may wait at once."""
        self._max_waiting = max_waiting
        self._entries: dict[Ticket, RequestEntry] = {}
        self._ids: dict[str, RequestEntry] = {}
        self._sequences: dict[SequenceId, SequenceState] = {}
        self._leases: dict[int, SequenceState] = {}
        self._next: SequenceId = 0

    def __len__(self) -> int:
        """Returns the number of requests that have not ended."""
        return len(self._entries)

    def preview(self, request: Request, ticket: Ticket, now: float) -> SequenceState:
        """Returns the request's first sequence as `admit` would make it, for the policy to look at."""
        self._refuse_if_unfit(request)
        return SequenceState(self._next, RequestEntry(ticket, request, now), 0, request.sampling)

    def admit(self, request: Request, ticket: Ticket, now: float) -> RequestEntry:
        """Adds a request with one sequence for each sample. Sample `i` has the request's seed + `i`."""
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
        """Yields the sequences that are in one of the stages, by arrival."""
        return (s for s in self._sequences.values() if s.stage in stages)

    def all_sequences(self) -> Collection[SequenceState]:
        """Returns every sequence, by arrival."""
        return self._sequences.values()

    def count(self, *stages: Stage) -> int:
        return sum(s.stage in stages for s in self._sequences.values())

    def suspect(self, *stages: Stage) -> bool:
        """Returns whether a sequence in one of the stages that is not held took part in a worker's death.

        At most one such sequence is computed by the two workers together: a fault on the GPU ends both workers, and
        does not say which sequence caused it.
        """
        return any(s.strikes and not s.held for s in self.sequences(*stages))

    def any_decoding(self) -> bool:
        """Returns whether the decode worker has a sequence to compute: one of its batch that is not held."""
        return any(not s.held for s in self.sequences(Stage.DECODING))

    def give_lease(self, sequence: SequenceState, lease: int) -> None:
        sequence.lease = lease
        self._leases[lease] = sequence

    def take_lease(self, sequence: SequenceState) -> int | None:
        """Detaches a sequence from its lease and returns the lease; None: it had none. The pages are not released."""
        lease, sequence.lease = sequence.lease, None
        if lease is not None:
            del self._leases[lease]
        return lease

    def start_over(self, sequence: SequenceState) -> None:
        """Makes a sequence without pages wait for the computation of its prompt and journal. The client notices a pause
        and nothing else."""
        self.take_lease(sequence)
        sequence.stage, sequence.held = Stage.WAITING, False
        sequence.computed = sequence.in_flight = 0

    def record(self, sequence: SequenceState, position: int, token: int, now: float) -> bool:
        """Adds one token to the journal. Returns True if it is new; then the client is to be told. Raises TokenGap."""
        known = len(sequence.output)
        if position < known:
            return False
        if position > known:
            raise TokenGap(f"token {position} came and {known} are known")
        sequence.output.append(token)
        sequence.strikes = 0
        sequence.last_token_s = now
        if position == 0:
            sequence.first_token_s = now
        return True

    def close(self, sequence: SequenceState) -> bool:
        """Removes a sequence that ended. Returns whether that ended its request. The caller has dealt with its
        lease."""
        self.take_lease(sequence)
        self._sequences.pop(sequence.number, None)
        sequence.entry.live.pop(sequence.index, None)
        if sequence.entry.live:
            return False
        self.forget(sequence.entry)
        return True

    def forget(self, entry: RequestEntry) -> None:
        """Removes a request and the sequences that it still has. The caller has dealt with their leases."""
        for sequence in entry.live.values():
            self.take_lease(sequence)
            self._sequences.pop(sequence.number, None)
        entry.live.clear()
        self._entries.pop(entry.ticket, None)
        self._ids.pop(entry.request.request_id, None)
