"""The coordinator in simulated time: admission, the queue, plans through the policy host's checks, the pool's pages.

As `semipd.coordinator`: two batches ahead with whoever computes prompts, a plan whenever one can be given out and every
20 ms, ready sequences into the decode batch by arrival, the youngest gives its pages back where none are left.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

from semipd.coordinator.observations import Observations
from semipd.coordinator.policy_host import PolicyHost
from semipd.coordinator.requests import Stage
from semipd.core.config import MIXED_TOKENS, PAGE_SIZE, PLANS_AHEAD, REVIEW_S, pages_for
from semipd.core.errors import Reason
from semipd.core.latency import NOMINAL, LatencyModel
from semipd.core.partition import FULL, Mode, Phase, Shares
from semipd.core.plan import Plan
from semipd.core.sms import split_sms, splits
from semipd.core.snapshot import Completion, FirstToken, Limits, PageUse, Snapshot
from semipd.core.snapshot import Step as Observation
from semipd.policies.contract import Policy
from semipd.profiles.profile import Overheads
from semipd.sim.client_metrics import Gaps, Tokens
from semipd.sim.device import Batch, Device
from semipd.sim.execution_times import Times
from semipd.sim.request import NEVER, RunningView, SimRequest, running
from semipd.sim.workers import DecodeWorker, PrefillWorker


@dataclass(frozen=True, slots=True)
class Settings:
    """The server that is simulated; as the options of `semipd serve`."""

    pages: int
    sms: int
    overheads: Overheads
    max_batch_tokens: int = 8192
    max_running: int = 512
    max_waiting: int = 512
    modes: frozenset[Mode] = frozenset({Mode.SPLIT, Mode.TURNS})
    step_rows: tuple[int, ...] = ()
    latency: LatencyModel = NOMINAL


class Server:
    """To be driven by `semipd.sim.replay`, which sets the time and says what has happened."""

    def __init__(self, policy: Policy, settings: Settings, times: Times, count_until_s: float = math.inf) -> None:
        self.settings = settings
        self.now_s = 0.0
        self.free_pages = settings.pages
        self.gaps = Gaps()
        self.tokens = Tokens(count_until_s)
        self.plans = 0
        """The policy was asked so often."""
        self.failures: list[str] = []
        """Why the policy was replaced, if it was."""
        self.host = PolicyHost(policy, 0.0, self._failed, budget=lambda _seconds: nullcontext())
        first = split_sms(FULL, settings.sms)
        overheads = settings.overheads
        self.device = Device(times, settings.sms, overheads.prepare_s, overheads.handover_s, first)
        self.prefill = PrefillWorker(self.device)
        self.decode = DecodeWorker(
            self.device,
            self._take_pages,
            self._preempted,
            self._joined,
            min(settings.max_batch_tokens, MIXED_TOKENS),
        )
        self.shares = first.granted
        self.reviewed_s = 0.0
        self.decoding = 0
        """Handed over and not answered for to the end."""
        self._limits = Limits(
            settings.max_batch_tokens,
            settings.max_running,
            settings.modes,
            settings.step_rows,
            latency=settings.latency,
            splits=splits(settings.sms),
            sms=settings.sms,
        )
        self._wish: Shares | None = None
        self._decode_limit = settings.max_running
        self._observations = Observations()
        self._waiting: dict[int, SimRequest] = {}
        self._idle = 0
        """Of those that wait, how many have nothing with a worker."""
        self._ready: list[SimRequest] = []
        self._numbers: list[int] = []  # of what runs, rising; and their seats
        self._seats: list[RunningView] = []
        self._seen_waiting: tuple[Any, ...] | None = ()
        self._seen_seats: tuple[RunningView, ...] | None = ()
        self._told_s = 0.0

    def _failed(self, name: str, why: str) -> None:
        self.failures.append(f"policy {name} was replaced by the fallback: it {why}")

    # --- for whoever watches ----------------------------------------------------------------------------------------

    @property
    def alive(self) -> int:
        """Requests that have been accepted and are not over."""
        return len(self._waiting) + len(self._numbers)

    @property
    def waiting(self) -> int:
        """With nothing at a worker."""
        return self._idle

    @property
    def prefilling(self) -> int:
        return len(self._waiting) - self._idle

    def snapshot(self) -> Snapshot:
        if self._seen_waiting is None:
            self._seen_waiting = tuple([life.seen or life.as_waiting() for life in self._waiting.values()])
        if self._seen_seats is None:
            self._seen_seats = tuple(self._seats)
        return Snapshot(
            self.now_s,
            self._seen_waiting,
            running(self._seen_seats, self.decode.done, self._told_s),
            PageUse(self.free_pages, self.settings.pages, PAGE_SIZE),
            self._limits,
            self.shares,
            self.device.mode,
            len(self.prefill.batches) + len(self.decode.batches),
            self._observations.observed(),
        )

    # --- what happens -----------------------------------------------------------------------------------------------

    def submit(self, life: SimRequest) -> None:
        """Accepts it, or refuses it: then `life.refused` says why."""
        life.arrival_s = self.now_s
        if self._idle >= self.settings.max_waiting:
            life.refused = Reason.QUEUE_FULL.value
        elif not self.host.admit(self.snapshot(), life.as_waiting()).accept:
            life.refused = Reason.DEADLINE_UNMEETABLE.value
        else:
            life.stage = Stage.WAITING
            self._waiting[life.number] = life
            self._idle += 1
            self._seen_waiting = None

    def batch_done(self) -> None:
        """The prefill pass on the device has ended."""
        self._answered(self.prefill.finish(self.now_s))

    def _answered(self, batch: Batch) -> None:
        self._seen_waiting = None
        for life, tokens in batch.chunks:
            life.computed += tokens
            life.in_flight, life.seen = 0, None
            if life.computed < life.to_compute:
                life.stage = Stage.WAITING
                self._idle += 1
            else:
                del self._waiting[life.number]
                self._sampled(life)
        count = len(batch.chunks)
        self._observe(Phase.PREFILL, batch.seconds, count, batch.tokens, batch.context_tokens, batch.mode)

    def _sampled(self, life: SimRequest) -> None:
        """Who computed its prompt has sampled its next token: the first, or the one after a preemption."""
        now = self.now_s
        life.output += 1
        self.tokens.output(now + self.settings.overheads.deliver_s, 1)
        if life.first_token_s is None:
            life.first_token_s = now
            self.tokens.prompt(now + self.settings.overheads.deliver_s, life.prompt_len)
            self._observations.first_token(FirstToken(now, now - life.arrival_s, life.prompt_len, life.slo))
        else:
            self._gap(life)
        life.last_token_s = now
        if life.output == life.output_len:
            self._over(life, life.pages)
            return
        life.stage, life.joined = Stage.READY, NEVER
        self._ready.append(life)
        at = bisect_left(self._numbers, life.number)
        self._numbers.insert(at, life.number)
        self._seats.insert(at, RunningView(life))
        self._seen_seats = None

    def step_done(self) -> None:
        """The decode step on the device has ended."""
        step, now = self.decode.finish(self.now_s), self.now_s
        if step.load is not None and step.load.last:
            self._answered(step.load.batch)
        if not step.rows:
            return
        dropped = step.dropped
        joiners = [life for life in step.joiners if life not in dropped] if dropped else step.joiners
        for life in joiners:
            self._gap(life)
        rows = step.rows - len(dropped)
        self.gaps.step(step.number, now - self._told_s, rows - len(joiners))
        self._told_s = now
        self.tokens.output(now + self.settings.overheads.deliver_s, rows)
        for life in step.enders:
            life.largest_gap_s = max(life.largest_gap_s, self.gaps.longest_since(life.joined + 1))
            pages = self.decode.pages_of(life, step.number - life.joined + 1)
            life.output, life.last_token_s = life.output_len, now
            self.decoding -= 1
            self._leave(life)
            self._over(life, pages)
        if rows:
            self._observe(Phase.DECODE, now - step.run.start_s, rows, rows, step.context_tokens, self.device.mode)

    def _gap(self, life: SimRequest) -> None:
        gap = self.now_s - life.last_token_s
        self.gaps.one(gap)
        life.largest_gap_s = max(life.largest_gap_s, gap)

    def _over(self, life: SimRequest, pages: int) -> None:
        life.stage, life.end_s = None, self.now_s
        life.pages = 0
        self.free_pages += pages
        assert life.first_token_s is not None
        count = life.output
        tpot = (life.last_token_s - life.first_token_s) / (count - 1) if count > 1 else None
        ttft = life.first_token_s - life.arrival_s
        self._observations.completion(Completion(self.now_s, tpot, count, life.slo), ttft)

    def _leave(self, life: SimRequest) -> None:
        at = bisect_left(self._numbers, life.number)
        del self._numbers[at]
        del self._seats[at]
        self._seen_seats = None

    def _observe(self, phase: Phase, took: float, count: int, tokens: int, context: int, mode: Mode) -> None:
        self._observations.step(Observation(phase, self.now_s, took, count, tokens, context, self.shares, mode))

    # --- acting -----------------------------------------------------------------------------------------------------

    def act(self) -> None:
        """After all that has happened at a moment."""
        room = self._idle > 0 and self._has_room(self.device.mode)
        if room or (self.alive and self.now_s >= self.reviewed_s + REVIEW_S):
            self.reviewed_s = self.now_s
            self.plans += 1
            self._follow(self.host.plan(self.snapshot()))
        if self._ready:
            self._hand_over()
        if self.free_pages == 0:
            self._unjam()

    def _has_room(self, mode: Mode) -> bool:
        """For another batch with whoever computes prompts in that mode."""
        return len((self.decode if mode is Mode.MIXED else self.prefill).batches) < PLANS_AHEAD

    def _follow(self, plan: Plan) -> None:
        self.device.mode, self.device.turn_tokens = plan.mode, plan.step_tokens or 1
        if plan.shares is not None and plan.shares != self._wish:
            self._wish = plan.shares
            self.device.split = split_sms(plan.shares, self.settings.sms)
            self.shares = self.device.split.granted
        self._decode_limit = plan.decode_limit or self.settings.max_running
        if plan.prefill and self._has_room(plan.mode):
            self._give_out(plan)

    def _give_out(self, plan: Plan) -> None:
        """Pages are taken here and not when the worker begins, so no pass ever fails for want of them."""
        chunks: list[tuple[SimRequest, int]] = []
        tokens, context, pairs = 0, 0, 0.0
        for chunk in plan.prefill:
            life, count = self._waiting[chunk.sequence], chunk.tokens
            chunks.append((life, count))
            tokens += count
            context += life.computed + count
            pairs += count * (life.computed + count / 2)
            held = pages_for(life.computed + count)
            self.free_pages -= held - life.pages
            life.pages = held
            life.stage, life.in_flight, life.seen = Stage.PREFILLING, count, None
            if life.prefill_start_s is None:
                life.prefill_start_s = self.now_s
        self._idle -= len(chunks)
        self._seen_waiting = None
        heard = self.now_s + self.settings.overheads.turnaround_s
        batch = Batch(chunks, tokens, context, pairs, heard, plan.mode, plan.step_tokens)
        if plan.mode is Mode.MIXED:
            self.decode.give(batch)
        else:
            self.prefill.give(batch)

    def _hand_over(self) -> None:
        """What is ready goes to the decode worker, by arrival, while the batch has room."""
        room = min(self._decode_limit, self.settings.max_running) - self.decoding
        if room <= 0:
            return
        self._ready.sort(key=lambda life: life.number)
        heard = self.now_s + self.settings.overheads.turnaround_s
        for life in self._ready[:room]:
            life.stage = Stage.DECODING
            self.decode.adopted.append((heard, life))
            self.decoding += 1
        del self._ready[:room]

    def _joined(self, life: SimRequest) -> None:
        self._seats[bisect_left(self._numbers, life.number)] = RunningView(life)
        self._seen_seats = None

    # --- pages ------------------------------------------------------------------------------------------------------

    def _take_pages(self, count: int) -> bool:
        if count > self.free_pages:
            return False
        self.free_pages -= count
        return True

    def _preempted(self, life: SimRequest) -> None:
        """By the decode worker, which has said what it has sampled and what it holds."""
        if life.joined <= self.decode.done:
            life.last_token_s = self._told_s
            life.largest_gap_s = max(life.largest_gap_s, self.gaps.longest_since(life.joined + 1))
        self.decoding -= 1
        self._leave(life)
        self._start_over(life)

    def _start_over(self, life: SimRequest) -> None:
        """Its pages are gone: prompt and output are computed again."""
        self.free_pages += life.pages
        life.pages = life.computed = 0
        life.joined, life.seen = NEVER, None
        life.preemptions += 1
        if life.stage is not Stage.WAITING:
            life.stage = Stage.WAITING
            self._idle += 1
            self._waiting[life.number] = life
            self._waiting = dict(sorted(self._waiting.items()))  # by arrival; it was away
        self._seen_waiting = None

    def _unjam(self) -> None:
        """Nobody can go on for want of pages: of those that nobody computes on, the youngest gives its own back."""
        if self.prefill.batches or self.decode.batches:
            return
        if not self.decoding:
            if self._ready or self._idle <= 1:
                return
        elif self.decode.flying or self.decoding > 1 or self.decode.adopted:
            return  # the decode worker goes on, or finds pages among its own
        holders: Sequence[SimRequest] = [life for life in (*self._waiting.values(), *self._ready) if life.pages]
        if holders:
            life = max(holders, key=lambda one: one.number)
            if life.stage is Stage.READY:
                self._ready.remove(life)
                self._leave(life)
            self._start_over(life)
