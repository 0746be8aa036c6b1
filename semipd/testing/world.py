"""A small world in simulated time: requests arrive, are prefilled and decoded, and pages are counted, as in the server.

Two workers as the latency model says, two prefill batches ahead with whoever computes prompts, a tick after each event
and at least every 20 ms. In mixed batches each decode step takes one prefill batch along, and is on the whole device.
Turns are not played: both compute at once.
Everything is a function of the arrivals and the policy: no clock is read and nothing is drawn.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

from semipd.core.config import OBSERVATIONS_KEPT, PLANS_AHEAD, REVIEW_S, pages_for
from semipd.core.partition import FULL, Mode, Phase, Shares
from semipd.core.plan import Chunk, Plan
from semipd.core.request import Slo
from semipd.core.snapshot import (
    Completion,
    FirstToken,
    Limits,
    Observed,
    PageUse,
    RunningSequence,
    SequenceId,
    Snapshot,
    Step,
    WaitingSequence,
)
from semipd.policies.contract import Broken, Policy, ask_admission, ask_plan
from semipd.policies.toolkit.latency import LatencyModel
from semipd.profiles.latency import shipped_model


@dataclass(frozen=True, slots=True)
class Arrival:
    """A request to come. `deadline_s` counts from its arrival."""

    at_s: float
    prompt_tokens: int
    output_tokens: int
    slo: Slo = field(default_factory=Slo)
    priority: int = 0
    deadline_s: float | None = None


@dataclass(frozen=True, slots=True)
class Settings:
    """The server that is simulated."""

    pages: int = 8192
    page_size: int = 16
    limits: Limits = field(default_factory=lambda: Limits(max_batch_tokens=8192, max_running=256))
    model: LatencyModel = field(default_factory=shipped_model)
    """What passes and steps take; policies see it as `limits.latency`."""
    shares: Shares = FULL
    """Until the policy says otherwise."""


@dataclass(slots=True)
class Life:
    """What became of a request. Times in seconds, None: not come to that."""

    arrival: Arrival
    sequence: SequenceId
    refused: str = ""
    first_token_s: float | None = None
    end_s: float | None = None
    expired: bool = False
    output: int = 0
    computed: int = 0
    in_flight: int = 0
    last_token_s: float = 0.0
    preemptions: int = 0

    @property
    def to_compute(self) -> int:
        return self.arrival.prompt_tokens + self.output

    @property
    def over(self) -> bool:
        return self.end_s is not None or self.expired or bool(self.refused)

    @property
    def ttft_s(self) -> float | None:
        return None if self.first_token_s is None else self.first_token_s - self.arrival.at_s

    @property
    def tpot_s(self) -> float | None:
        """Mean seconds a token after the first; None below two tokens."""
        if self.end_s is None or self.first_token_s is None or self.output < 2:
            return None
        return (self.end_s - self.first_token_s) / (self.output - 1)

    @property
    def in_time(self) -> bool:
        """It ended, within everything that its SLO names."""
        slo, ttft, tpot = self.arrival.slo, self.ttft_s, self.tpot_s
        if self.end_s is None or ttft is None:
            return False
        return (slo.ttft_s is None or ttft <= slo.ttft_s) and (slo.tpot_s is None or tpot is None or tpot <= slo.tpot_s)


@dataclass(frozen=True, slots=True)
class Batch:
    chunks: tuple[Chunk, ...]
    tokens: int
    context_tokens: int
    mode: Mode


class World:
    """`ask` is how the policy is asked for a plan; the default checks what it answers."""

    def __init__(
        self,
        policy: Policy,
        arrivals: Sequence[Arrival],
        settings: Settings | None = None,
        ask: Callable[[Policy, Snapshot], Plan] = ask_plan,
    ) -> None:
        self.settings = settings or Settings()
        self.now_s = 0.0
        self.plans: list[tuple[float, Plan]] = []
        self.lives = [Life(a, n) for n, a in enumerate(sorted(arrivals, key=lambda a: a.at_s))]
        self.shares = self.settings.shares
        self.mode = Mode.SPLIT
        self._policy = policy
        self._ask = ask
        self._coming = deque(self.lives)
        self._waiting: dict[SequenceId, Life] = {}
        self._ready: dict[SequenceId, Life] = {}
        self._decoding: dict[SequenceId, Life] = {}
        self._batches: deque[Batch] = deque()
        self._riding: deque[Batch] = deque()  # for decode steps to take along
        self._along: Batch | None = None  # in the step at work
        self._prefill_end: tuple[float, float, Shares] | None = None  # of the batch at the front: end, start, shares
        self._decode_end: tuple[float, float, Shares] | None = None
        self._decode_limit = self.settings.limits.max_running
        self._limits = replace(self.settings.limits, latency=self.settings.model)
        self._reviewed_s = 0.0
        self._steps: deque[Step] = deque(maxlen=OBSERVATIONS_KEPT)
        self._firsts: deque[FirstToken] = deque(maxlen=OBSERVATIONS_KEPT)
        self._completions: deque[Completion] = deque(maxlen=OBSERVATIONS_KEPT)
        self._observed = Observed()

    # --- the loop ---------------------------------------------------------------------------------------------------

    def run(self, until_s: float = math.inf) -> list[Life]:
        """Until all requests are over or that moment has come; what became of them, by arrival."""
        while (moment := self._next_moment()) is not None and moment <= until_s:
            self.now_s = moment
            self._happen()
            self._expire()
            self._tick()
            self._start()
        return self.lives

    def _next_moment(self) -> float | None:
        moments = [end[0] for end in (self._prefill_end, self._decode_end) if end is not None]
        if self._coming:
            moments.append(self._coming[0].arrival.at_s)
        if self._waiting or self._ready or self._decoding:
            moments.append(self._reviewed_s + REVIEW_S)
        return max(self.now_s, min(moments)) if moments else None

    def _happen(self) -> None:
        if self._decode_end is not None and self._decode_end[0] <= self.now_s:
            self._end_step(self._decode_end)
        if self._prefill_end is not None and self._prefill_end[0] <= self.now_s:
            self._end_batch(self._prefill_end)
        while self._coming and self._coming[0].arrival.at_s <= self.now_s:
            life = self._coming.popleft()
            answer = ask_admission(self._policy, self.snapshot(), _as_waiting(life))
            if answer.accept:
                self._waiting[life.sequence] = life
            elif not answer.why:
                raise Broken("a request is refused without a word why")
            else:
                life.refused = answer.why

    def _tick(self) -> None:
        room = self._has_room(self.mode) and bool(self._waiting)
        if not room and self.now_s < self._reviewed_s + REVIEW_S:
            return
        self._reviewed_s = self.now_s
        plan = self._ask(self._policy, self.snapshot())
        self.plans.append((self.now_s, plan))
        self.shares, self.mode = plan.shares or self.shares, plan.mode
        most = self.settings.limits.max_running
        self._decode_limit = min(plan.decode_limit or most, most)
        if plan.prefill and self._has_room(plan.mode):
            self._give_out(plan.prefill, plan.mode)
        self._unjam()

    def _has_room(self, mode: Mode) -> bool:
        """For another batch with whoever computes prompts in that mode."""
        return (self._with_decode() if mode is Mode.MIXED else len(self._batches)) < PLANS_AHEAD

    def _with_decode(self) -> int:
        """Prefill batches."""
        return len(self._riding) + (self._along is not None)

    def snapshot(self) -> Snapshot:
        settings = self.settings
        running = sorted([*self._ready.values(), *self._decoding.values()], key=lambda life: life.sequence)
        return Snapshot(
            now_s=self.now_s,
            waiting=tuple(_as_waiting(self._waiting[n]) for n in sorted(self._waiting)),
            running=tuple(_as_running(life) for life in running),
            pages=PageUse(self.free_pages(), settings.pages, settings.page_size),
            limits=self._limits,
            shares=self.shares,
            mode=self.mode,
            prefill_batches=len(self._batches) + self._with_decode(),
            observed=self._observed,
        )

    # --- pages ------------------------------------------------------------------------------------------------------

    def free_pages(self) -> int:
        """Pages of chunks in flight count as taken, so that two batches ahead never plan the same page."""
        lives = [*self._waiting.values(), *self._ready.values(), *self._decoding.values()]
        return self.settings.pages - sum(self._pages(life.computed + life.in_flight) for life in lives)

    def _pages(self, tokens: int) -> int:
        return pages_for(tokens, self.settings.page_size)

    def _unjam(self) -> None:
        """Prompts that are half computed hold all pages and nothing runs: the least important starts over."""
        holders = [life for life in self._waiting.values() if life.computed]
        idle = not (self._batches or self._with_decode() or self._ready or self._decoding)
        if self.free_pages() == 0 and idle and len(holders) > 1:
            _least_important(holders).computed = 0

    def _preempt(self, life: Life) -> None:
        del self._decoding[life.sequence]
        life.computed = 0
        life.preemptions += 1
        self._waiting[life.sequence] = life

    # --- prefill ----------------------------------------------------------------------------------------------------

    def _give_out(self, chunks: tuple[Chunk, ...], mode: Mode) -> None:
        context = 0
        for chunk in chunks:
            life = self._waiting[chunk.sequence]
            life.in_flight = chunk.tokens
            context += life.computed + chunk.tokens
        batch = Batch(chunks, sum(c.tokens for c in chunks), context, mode)
        (self._riding if mode is Mode.MIXED else self._batches).append(batch)

    def _end_batch(self, timing: tuple[float, float, Shares]) -> None:
        batch, self._prefill_end = self._batches.popleft(), None
        self._computed(batch, timing)

    def _computed(self, batch: Batch, timing: tuple[float, float, Shares]) -> None:
        for chunk in batch.chunks:
            life = self._waiting.get(chunk.sequence)
            if life is None:
                continue  # expired meanwhile
            life.computed, life.in_flight = life.computed + chunk.tokens, 0
            if life.computed == life.to_compute:
                del self._waiting[chunk.sequence]
                self._token(life)
                if life.end_s is None:
                    self._ready[life.sequence] = life
        self._observe(Phase.PREFILL, timing, len(batch.chunks), batch.tokens, batch.context_tokens, batch.mode)

    # --- decode -----------------------------------------------------------------------------------------------------

    def _end_step(self, timing: tuple[float, float, Shares]) -> None:
        along, self._along, self._decode_end = self._along, None, None
        if along is not None:
            self._computed(along, timing)
        batch = list(self._decoding.values())
        context = sum(life.computed for life in batch)
        for life in batch:
            life.computed += 1
            self._token(life)
            if life.end_s is not None:
                del self._decoding[life.sequence]
        if batch:
            self._observe(Phase.DECODE, timing, len(batch), len(batch), context, self.mode)

    def _token(self, life: Life) -> None:
        life.output += 1
        life.last_token_s = self.now_s
        if life.first_token_s is None:
            life.first_token_s = self.now_s
            ttft = self.now_s - life.arrival.at_s
            self._firsts.append(FirstToken(self.now_s, ttft, life.arrival.prompt_tokens, life.arrival.slo))
        if life.output >= life.arrival.output_tokens:
            life.end_s = self.now_s
            self._completions.append(Completion(self.now_s, life.tpot_s, life.output, life.arrival.slo))

    # --- time -------------------------------------------------------------------------------------------------------

    def _start(self) -> None:
        """Whoever is free begins with what there is; each keeps the pace that it began with to the end of its step."""
        if self._decode_end is None:
            self._adopt()
        prefilling, decoding = bool(self._batches), bool(self._decoding or self._with_decode())
        shares = self.shares if prefilling and decoding else FULL
        model = self.settings.model
        if self._prefill_end is None and prefilling:
            batch = self._batches[0]
            took = model.prefill_s(
                batch.tokens,
                batch.context_tokens,
                share=shares.prefill,
                other=shares.decode if decoding else 0.0,
                sequences=len(batch.chunks),
            )
            self._prefill_end = (self.now_s + took, self.now_s, self.shares)
        if self._decode_end is None and decoding:
            context = sum(life.computed for life in self._decoding.values())
            if self._riding:
                along = self._along = self._riding.popleft()
                computed = (along.context_tokens - along.tokens) // len(along.chunks)
                took = model.mixed_s(along.tokens, computed, len(self._decoding), context)
            else:
                other = shares.prefill if prefilling else 0.0
                took = model.decode_s(len(self._decoding), context, share=shares.decode, other=other)
            self._decode_end = (self.now_s + took, self.now_s, self.shares)

    def _adopt(self) -> None:
        """Before a step: who is ready joins; where pages for the next tokens are missing, the least important go."""
        for life in sorted(self._ready.values(), key=lambda life: (-life.arrival.priority, life.sequence)):
            if len(self._decoding) < self._decode_limit:
                del self._ready[life.sequence]
                self._decoding[life.sequence] = life
        while self._decoding:
            growing = sum(life.computed % self.settings.page_size == 0 for life in self._decoding.values())
            if growing <= self.free_pages():
                return
            self._preempt(_least_important(self._decoding.values()))

    def _expire(self) -> None:
        for group in (self._waiting, self._ready, self._decoding):
            for life in list(group.values()):
                deadline = life.arrival.deadline_s
                if deadline is not None and self.now_s > life.arrival.at_s + deadline:
                    life.expired = True
                    del group[life.sequence]

    def _observe(
        self,
        phase: Phase,
        timing: tuple[float, float, Shares],
        sequences: int,
        tokens: int,
        context: int,
        mode: Mode,
    ) -> None:
        end, start, shares = timing
        self._steps.append(Step(phase, end, end - start, sequences, tokens, context, shares, mode))
        self._observed = Observed(tuple(self._steps), tuple(self._firsts), tuple(self._completions))


def _least_important(lives: Iterable[Life]) -> Life:
    """Of the lowest priority the youngest."""
    return min(lives, key=lambda life: (life.arrival.priority, -life.sequence))


def _as_waiting(life: Life) -> WaitingSequence:
    arrival = life.arrival
    return WaitingSequence(
        sequence=life.sequence,
        request_id=f"r{life.sequence}",
        arrival_s=arrival.at_s,
        prompt_tokens=life.to_compute,
        computed_tokens=life.computed,
        in_flight_tokens=life.in_flight,
        output_tokens=life.output,
        max_tokens=arrival.output_tokens,
        priority=arrival.priority,
        slo=arrival.slo,
        deadline_s=None if arrival.deadline_s is None else arrival.at_s + arrival.deadline_s,
        preemptions=life.preemptions,
    )


def _as_running(life: Life) -> RunningSequence:
    assert life.first_token_s is not None
    return RunningSequence(
        sequence=life.sequence,
        request_id=f"r{life.sequence}",
        arrival_s=life.arrival.at_s,
        first_token_s=life.first_token_s,
        last_token_s=life.last_token_s,
        context_tokens=life.computed,
        output_tokens=life.output,
        max_tokens=life.arrival.output_tokens,
        priority=life.arrival.priority,
        slo=life.arrival.slo,
    )
