"""Deadlines first: order, chunks and the use of the device chosen from a latency model that follows the server."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from semipd.core.partition import Mode, Shares
from semipd.core.plan import Admission, Chunk, Plan
from semipd.core.snapshot import RunningSequence, Snapshot, WaitingSequence
from semipd.policies.builtin.adaptive.batch_cap import Traffic, most_rows
from semipd.policies.builtin.adaptive.modes import (
    TILE,
    Choice,
    Hysteresis,
    Load,
    choices,
    preferred,
    split_choice,
)
from semipd.policies.contract import Policy
from semipd.policies.policy_options import PolicyOptions, option
from semipd.policies.toolkit.deadlines import ASSUMED_TPOT_S, ASSUMED_TTFT_S, due_s
from semipd.policies.toolkit.forecast import STEP_TOKENS, Forecast, effective, other_share
from semipd.policies.toolkit.ordering import BySlack, RankedPrompts
from semipd.policies.toolkit.running_batch import joining

HORIZON = 64
"""Tokens over which a sequence that fell behind its pace is to make up for it."""
MAKE_UP = 0.2
"""Of its pace, the most by which it is then to go faster: one that can't be helped must not slow down all prompts."""
SPEND = 32
"""Tokens over which a sequence that is ahead of its pace may spend what it has in hand."""
CONTENT = 0.75
"""Of the sequences with one wish, so many may be behind the pace that is kept: it follows them all the same, for it
falls as they fall behind. Were it the last one that decides, long turns, which serve most, would be refused to all for
its sake."""
SETTLED = 32
"""Tokens after which a sequence counts: before, it has nothing in hand, and most of its time to make up for a gap."""
LARGEST_CHUNK = 2048
RECENT = 64
"""First tokens, and as many waiting, whose wishes say how long a batch may take; the tightest tenth counts."""
BATCH_OF_WISH = 0.25
WAIT_OF_WISH = 0.5
LONGEST_BATCH_S = 0.06
FIRST_SPLIT = 2
"""Index into the splits that the device has: the split that is presumed before any was chosen."""
READY = 32
"""Of the places in the decode batch, one in so many may be waited for with the first token there."""
CERTAIN = 0.8
"""A deadline counts as lost if even this part of the estimate does not fit before it."""


class AdaptiveOptions(PolicyOptions):
    batch_ms: float | None = option(
        None,
        "Time that one prefill batch takes. Not given: a quarter of the tightest TTFT that clients lately asked for.",
        unit="ms",
        above=0,
        high=10_000,
    )
    ahead_ms: float = option(
        8.0, "Time before the prefill worker is free at which it gets its next batch.", unit="ms", above=0, high=10_000
    )
    margin: float = option(10.0, "Part of each TPOT that is kept in reserve.", unit="%", above=0, high=90)
    dwell_ms: float = option(
        250.0, "Time that shares and mode stay at least, against flapping.", unit="ms", above=0, high=60_000
    )


class Adaptive(Policy):
    """Deadline order, bounded chunks, and turns, mixed batches or a split, whatever brings first tokens soonest.

    *Admit*: refused is only who names a deadline by which, so it seems, not even the first token can come.
    *Order*: prompts run by deadline slack with ageing (semipd.policies.toolkit.deadlines).
    *Plan*: a batch takes a quarter of the tightest TTFT that clients lately wished, so that a short prompt that comes
    next never waits long, and is given out `ahead_ms` before the worker is free. Of the ways to use the device that the
    engine has (`modes.py`) it takes the one under which a latency model that follows the server expects
    first tokens soonest, while the running batch keeps the TPOT that it wishes with `margin`: turns with as many prompt
    tokens to a decode step as the pace allows; mixed batches where so much comes that they are needed; a split where
    decode can't wait for a turn to end. A sequence that is ahead of its pace may be slower for a while. `dwell_ms` and
    a gain threshold keep it from flapping. While no prompt waits, shares and mode stay: the engine then gives decode
    the whole device by itself. No more prompts are begun than decode has places for.
    """

    name: ClassVar[str] = "adaptive"
    Options = AdaptiveOptions
    options: AdaptiveOptions

    def __init__(self, options: AdaptiveOptions | None = None) -> None:
        super().__init__(options)
        chosen = self.options
        self._batch_s = (chosen.batch_ms or 0.0) / 1000
        self._ahead_s = chosen.ahead_ms / 1000
        self._margin = chosen.margin / 100
        self._hysteresis = Hysteresis(chosen.dwell_ms / 1000)
        self._forecast = Forecast()
        self._slack = BySlack(self._forecast)
        self._wished: Snapshot | None = None
        self._tight_s = ASSUMED_TTFT_S
        self._paced: Sequence[RunningSequence] = ()
        self._counted: Sequence[RunningSequence] = ()
        self._most: int | None = None
        self._pace_s = self._wish_s = 0.0
        self._shares: Shares | None = None
        self._mode = Mode.SPLIT
        self._since_s = float("-inf")

    def admit(self, snapshot: Snapshot, sequence: WaitingSequence) -> Admission:
        if sequence.deadline_s is None:
            return Admission()
        self._forecast.see(snapshot)
        seconds = self._forecast.work(snapshot)
        own = seconds(sequence)
        due = due_s(sequence, own)
        ahead = sum(work for w in snapshot.waiting for work in (seconds(w),) if due_s(w, work) <= due)
        needed = self._forecast.in_flight_s(snapshot) + self._forecast.launch_s() + ahead + own
        left = sequence.deadline_s - snapshot.now_s
        if CERTAIN * needed <= left:
            return Admission()
        return Admission(
            accept=False,
            why=f"the first token is expected in {needed:.2f} s and the deadline is in {left:.2f} s",
            retry_after_s=max(0.1, needed - left),
        )

    def plan(self, snapshot: Snapshot) -> Plan:
        prompts = self._slack.ranked(snapshot)
        if not snapshot.waiting or not snapshot.running:
            chunk = self._chunk(snapshot)
            chunks = self._fill(snapshot, prompts, chunk, self._ahead_s)
            return Plan(prefill=chunks, mode=self._mode)
        choice = self._choose(snapshot)
        self._forecast.step_tokens = choice.step_tokens or STEP_TOKENS
        # A step is launched while the one before it is on the device: a batch for it must be there by then.
        ahead_s = max(self._ahead_s, choice.decode_s) if choice.mode is Mode.MIXED else self._ahead_s
        return Plan(
            prefill=self._fill(snapshot, prompts, choice.chunk, ahead_s),
            shares=choice.shares,
            mode=choice.mode,
            step_tokens=choice.step_tokens,
        )

    def _fill(self, snapshot: Snapshot, prompts: RankedPrompts, chunk: int, ahead_s: float) -> tuple[Chunk, ...]:
        """Nothing while the worker is busy for longer than that: what comes in the meantime may have to be first."""
        if self._forecast.in_flight_s(snapshot) > ahead_s:
            return ()
        return prompts.take(chunk, sequences=self._places(snapshot))

    def _places(self, snapshot: Snapshot) -> int:
        """For how many more sequences decode has a place: one whose first token comes before has its pace to lose.

        A few wait for theirs, so that it is taken at once. Where the phases take turns and sizes of a step are known,
        as many are let in as are served best.
        """
        rows, most = len(snapshot.running), snapshot.limits.max_running
        places = most + max(1, most // READY)
        if rows and self._mode is Mode.TURNS and snapshot.limits.step_rows:
            looked = self._forecast.batch.looked_over(snapshot)
            if looked is not self._counted:
                self._counted, self._most = looked, self._most_rows(snapshot)
            places = min(places, self._most or places)
        return max(0, places - rows - len(joining(snapshot)))

    def _most_rows(self, snapshot: Snapshot) -> int | None:
        """As many as are served best; None: as many as can be."""
        sizes, forecast = snapshot.limits.step_rows, self._forecast
        if not forecast.prompt_per_token:
            return None
        context = forecast.batch.context_tokens(snapshot) / len(snapshot.running)
        best = most_rows(forecast.model, sizes, Traffic(context, forecast.prompt_per_token, self._wish_s))
        return None if best == sizes[-1] else best

    def _chunk(self, snapshot: Snapshot) -> int:
        """Prompt tokens that take about the time for a batch, under the shares as they are: some tiles."""
        model, other = self._forecast.model, other_share(snapshot)
        share = effective(snapshot).prefill
        fixed = model.batch_s * model.scales.prefill(other > 0)
        token_s = model.prompt_s(1000, 0, share=share, other=other) / 1000
        tokens = round((self._batch_time_s(snapshot) - fixed) / token_s / TILE) * TILE
        return min(LARGEST_CHUNK, max(TILE, tokens))

    def _batch_time_s(self, snapshot: Snapshot) -> float:
        if self._batch_s:
            return self._batch_s
        return min(LONGEST_BATCH_S, max(self._forecast.launch_s(), self._tight_ttft_s(snapshot) * BATCH_OF_WISH))

    def _tight_ttft_s(self, snapshot: Snapshot) -> float:
        if self._wished is not snapshot:  # asked for more than once of each
            lately = [f.slo.ttft_s for f in snapshot.observed.first_tokens[-RECENT:]]
            wishes = [s for s in [*[w.slo.ttft_s for w in snapshot.waiting[:RECENT]], *lately] if s is not None]
            wishes.sort()
            self._wished, self._tight_s = snapshot, wishes[len(wishes) // 10] if wishes else ASSUMED_TTFT_S
        return self._tight_s

    def _choose(self, snapshot: Snapshot) -> Choice:
        model, limits, now = self._forecast.model, snapshot.limits, snapshot.now_s
        load = self._load(snapshot)
        if self._shares is None:
            self._shares = limits.splits[min(FIRST_SPLIT, len(limits.splits) - 1)]
        found = list(choices(model, load, limits))
        wanted = preferred(found, load)
        if (wanted.shares, wanted.mode) == (self._shares, self._mode):
            return wanted
        if self._mode is Mode.SPLIT:
            present = split_choice(model, load, self._shares)
        else:
            same = [c for c in found if c.mode is self._mode] or [wanted]
            present = max(same, key=lambda c: (c.decode_s <= load.pace_s, -c.first_s))
        settled = self._hysteresis.settle(present, wanted, load, now - self._since_s)
        if (settled.shares, settled.mode) != (self._shares, self._mode):
            self._shares, self._mode, self._since_s = settled.shares, settled.mode, now
        return settled

    def _load(self, snapshot: Snapshot) -> Load:
        """The running batch, and the prompts with the worker that will join it."""
        soon = joining(snapshot)
        context = self._forecast.batch.context_tokens(snapshot) + sum(w.prompt_tokens for w in soon)
        first = snapshot.waiting[0]
        return Load(
            rows=min(len(snapshot.running) + len(soon), snapshot.limits.max_running),
            context_tokens=context,
            pace_s=self._tightest_pace_s(snapshot),
            chunk=self._chunk(snapshot),
            wait_s=self._tight_ttft_s(snapshot) * WAIT_OF_WISH,
            prompt=self._forecast.prompt_tokens,
            arriving=self._forecast.arriving(snapshot),
            computed=first.computed_tokens,
        )

    def _tightest_pace_s(self, snapshot: Snapshot) -> float:
        running = self._forecast.batch.looked_over(snapshot)
        if running is not self._paced:
            self._paced, self._pace_s = running, self._kept_pace_s(running)
        return self._pace_s

    def _kept_pace_s(self, running: Sequence[RunningSequence]) -> float:
        """The tightest of what those with one wish are content with."""
        alike: dict[float | None, list[RunningSequence]] = {}
        for one in [r for r in running if r.output_tokens >= SETTLED] or running:
            alike.setdefault(one.slo.tpot_s, []).append(one)
        paces: list[float] = []
        wishes: list[float] = []
        for tpot_s, those in alike.items():
            wish = (ASSUMED_TPOT_S if tpot_s is None else tpot_s) * (1 - self._margin)
            behind = [r.last_token_s - r.first_token_s - wish * (r.output_tokens - 1) for r in those]
            behind.sort(reverse=True)  # who is further behind has the tighter pace
            paces.append(kept_pace_s(wish, behind[int((len(behind) - 1) * CONTENT)]))
            wishes.append(wish)
        self._wish_s = min(wishes)
        return min(paces)


def kept_pace_s(wish_s: float, behind_s: float) -> float:
    """Seconds a token under which a sequence's mean stays within its wish, if it is so far behind that, or ahead (< 0).

    One that fell behind is to make up for it over HORIZON tokens; one that is ahead may take SPEND tokens to lose its
    lead, at half its pace at least.
    """
    if behind_s <= 0:
        return min(2 * wish_s, wish_s - behind_s / SPEND)
    return max(wish_s * (1 - MAKE_UP), wish_s - behind_s / HORIZON)
