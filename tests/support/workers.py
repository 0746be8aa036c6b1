"""A worker on a stage: its loop and the page account are real; the wire, the device and the passing of time are played.

A test's play is a generator: it yields what the worker hears before its next pass, and looks around when that pass is
over. When the play ends, the worker is told to end.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from semipd.core.config import PAGE_SIZE
from semipd.core.request import End, EndReason, SamplingParams, StoppingParams
from semipd.engine.attention import Pages
from semipd.engine.engine import PrefillItem, SampledToken, SamplingInput, SequenceFailure, TokenOutcome
from semipd.engine.pulse import Pulse
from semipd.internal.v1 import worker_pb2 as wk
from semipd.memory.account import Holder, PageAccount
from semipd.wire.codec import sampling_to_wire, stopping_to_wire
from semipd.workers.backend import StepOutcomes
from semipd.workers.coordinator_link import CoordinatorLink

Play = Iterator[Sequence[wk.ToWorker]]


def new_account(pages: int) -> PageAccount:
    leases = 40
    return PageAccount.create(memoryview(bytearray(PageAccount.bytes_needed(pages, leases))), pages, leases)


class PlayedLink(CoordinatorLink):
    def __init__(self, play: Play) -> None:
        self._play = play
        self._inbox: deque[wk.ToWorker] | None = None
        self.played = False
        """True when the play has come to its end."""
        self.said: list[wk.FromWorker] = []

    def receive(self, wait_s: float = 0.0) -> wk.ToWorker | None:
        if self._inbox is None:  # a pass begins
            self._inbox = deque(self._next())
        if self._inbox:
            return self._inbox.popleft()
        self._inbox = None
        return None

    def _next(self) -> Sequence[wk.ToWorker]:
        try:
            return next(self._play)
        except StopIteration:
            self.played = True
            return [wk.ToWorker(shutdown=wk.Shutdown())]

    def send(self, message: wk.FromWorker) -> None:
        copy = wk.FromWorker()
        copy.CopyFrom(message)
        self.said.append(copy)

    def steps(self) -> list[wk.StepDone]:
        return [m.step_done for m in self.said if m.HasField("step_done")]

    def prefilled(self) -> list[wk.PrefillDone]:
        return [m.prefill_done for m in self.said if m.HasField("prefill_done")]


@dataclass
class PlayedTurns:
    """A `TurnTaking`. While it is `on` the phases alternate, and each pass of ours has to be waited for."""

    on: bool = False
    alone: bool = False
    """The other phase is idle."""
    turn_tokens: int = 0
    """Prompt tokens with which prefill keeps the turn, at most."""
    log: list[str] = field(default_factory=list)
    marked: list[bool] = field(default_factory=list)

    def busy(self, work: bool) -> None:
        self.marked.append(work)

    def enabled(self) -> bool:
        return self.on

    def alternating(self) -> bool:
        return self.on and not self.alone

    def mine(self) -> bool:
        return not self.alternating()

    def wait(self, pulse: Pulse) -> None:
        self.log.append("wait for turn")

    def end(self, *, computed: int = 0, following: int = 0) -> bool:
        keeps = bool(following) and computed + following <= self.turn_tokens
        self.log.append(f"{'keep' if keeps else 'end'} turn {computed}, then {following}" if computed else "end turn")
        return keeps


@dataclass
class PlayedBackend:
    """A `Backend` with spare work at any time, so that its worker never waits for messages."""

    turns: PlayedTurns

    def choose_share(self) -> None:
        pass

    def set_shares(self, message: wk.SetShares) -> None:
        pass

    def has_spare_work(self) -> bool:
        return True

    def do_spare_work(self) -> None:
        pass


# --- decode ---------------------------------------------------------------------------------------------------------


@dataclass
class Row:
    lease: int
    context: int
    position: int
    left: int
    pages: int
    last_step: int = 0


@dataclass
class Pass:
    number: int
    rows: list[tuple[Row, int]]
    prompts: list[PrefillItem]


class LateBatch:
    """Works as a GPU's decode batch: `step` answers for the step before, and a sequence that has left is quiet when its
    last step is over. The device's writes are checked against the account: it never writes to the page of another.

    `ends`: output position of a sequence's stop token, by lease; `fails`: leases whose next token can't be drawn.
    """

    def __init__(self, account: PageAccount, me: Holder, log: list[str]) -> None:
        self._account, self._me, self._log = account, me, log
        self._rows: dict[int, Row] = {}
        self._held: frozenset[int] = frozenset()
        self._left: list[Row] = []
        self._flying: deque[Pass] = deque()
        self._known: list[tuple[Sequence[PrefillItem], list[TokenOutcome | None]]] = []
        self._launched = self._collected = 0
        self.ends: dict[int, int] = {}
        self.fails: set[int] = set()
        self.reassigned: set[int] = set()
        """Leases that were taken away from this worker. The pages are not this worker's matter any more."""
        self.too_much: Callable[[list[int]], bool] = lambda _leases: False
        """Says whether memory runs out for these prompts together."""
        self.prompts: list[PrefillItem] = []
        """All items that were computed."""

    @property
    def flying(self) -> int:
        return len(self._flying)

    def leases(self) -> list[int]:
        return list(self._rows)

    def context_tokens(self) -> int:
        return sum(row.context for row in self._rows.values() if row.lease not in self._held)

    def hold(self, leases: Collection[int]) -> None:
        self._held = frozenset(leases)

    def _active(self) -> list[Row]:
        return [row for row in self._rows.values() if row.lease not in self._held]

    def add(self, lease: int, context: int, table: Pages, sampling: SamplingInput) -> None:
        assert lease not in self._rows
        left = sampling.stopping.max_tokens - len(sampling.output)
        self._rows[lease] = Row(lease, context, len(sampling.output), left, len(table))

    def remove(self, lease: int) -> None:
        self._left.append(self._rows.pop(lease))

    def quiet(self) -> list[int]:
        done = [row for row in self._left if row.last_step <= self._collected]
        self._left = [row for row in self._left if row not in done]
        return [row.lease for row in done]

    def wanting_pages(self) -> list[int]:
        return [row.lease for row in self._active() if row.context >= row.pages * PAGE_SIZE and row.left > 0]

    def grow(self, lease: int, pages: Sequence[int] | Pages) -> None:
        self._rows[lease].pages += len(pages)

    def prepare(self) -> None:
        self._log.append("prepare")

    def wait(self, pulse: Pulse) -> None:
        self._log.append("wait")
        pulse.beat()

    def step(self, pulse: Pulse, *, ahead: bool = True, prompts: Sequence[PrefillItem] = ()) -> StepOutcomes:
        leases = [item.lease for item in prompts]
        if leases and self.too_much(leases):
            raise MemoryError("launch")
        ready = [row for row in self._active() if row.context < row.pages * PAGE_SIZE and row.left > 0]
        launch = bool(ready or prompts)
        if launch:
            self._log.append(" ".join(["step", *(f"with {lease}" for lease in leases)]))
            self._launched += 1
            self._flying.append(Pass(self._launched, [(row, row.position) for row in ready], list(prompts)))
        for row in ready:
            row.context, row.position, row.left = row.context + 1, row.position + 1, row.left - 1
            row.last_step = self._launched
        found = []
        while len(self._flying) > (launch and ahead):
            found += self._collect()
        return found

    def prompt_outcomes(self) -> list[tuple[Sequence[PrefillItem], list[TokenOutcome | None]]]:
        known, self._known = self._known, []
        return known

    def drain(self, pulse: Pulse) -> StepOutcomes:
        found = []
        while self._flying:
            found += self._collect()
        return found

    def _collect(self) -> StepOutcomes:
        over = self._flying.popleft()
        for lease in [*(row.lease for row, _ in over.rows), *(item.lease for item in over.prompts)]:
            held = self._account.holder(lease) == self._me
            assert held or lease in self.reassigned, f"step {over.number} writes to pages that lease {lease} gave back"
        self._collected = over.number
        if over.prompts:
            self.prompts += over.prompts
            outcomes = [
                None if i.sampling is None else SampledToken(7, len(i.sampling.output), None, None)
                for i in over.prompts
            ]
            self._known.append((over.prompts, list(outcomes)))
        return [self._outcome(row, position) for row, position in over.rows if row.lease in self._rows]

    def _outcome(self, row: Row, position: int) -> tuple[int, TokenOutcome]:
        end: End | None = None
        if row.lease in self.fails:
            self.remove(row.lease)
            return row.lease, SequenceFailure("the model's output is not finite")
        if self.ends.get(row.lease) == position:
            end = End(EndReason.STOP_TOKEN, 2)
        elif row.left == 0 and row.position == position + 1:
            end = End(EndReason.LENGTH)
        if end is not None:
            self.remove(row.lease)
        return row.lease, SampledToken(100 + position, position, None, end)


def continuation(output: int = 1, max_tokens: int = 100) -> wk.Continuation:
    return wk.Continuation(
        sampling=sampling_to_wire(SamplingParams(temperature=0.0)),
        stopping=stopping_to_wire(StoppingParams(max_tokens)),
        output=range(output),
    )


def adopt(lease: int, context: int, *, priority: int = 0, sequence: int = 0, max_tokens: int = 100) -> wk.ToWorker:
    """Makes a message that hands over a sequence with one token of output."""
    return wk.ToWorker(
        adopt=wk.Adopt(
            lease=lease,
            context=context,
            continuation=continuation(max_tokens=max_tokens),
            priority=priority,
            sequence=sequence,
            ordinal=1,
        )
    )


def hold(*leases: int) -> wk.ToWorker:
    return wk.ToWorker(hold=wk.Hold(leases=leases))


def drop(*leases: int) -> wk.ToWorker:
    return wk.ToWorker(drop=wk.Drop(leases=leases))


def batch(
    number: int, leases: Sequence[int], tokens: int = 20, start: int = 0, *, ends: bool = True, step_tokens: int = 0
) -> wk.ToWorker:
    chunks = [
        wk.Chunk(lease=lease, start=start, tokens=range(tokens), continuation=continuation(0) if ends else None)
        for lease in leases
    ]
    return wk.ToWorker(prefill=wk.PrefillBatch(batch=number, chunks=chunks, step_tokens=step_tokens))


# --- prefill --------------------------------------------------------------------------------------------------------


class PlayedEngine:
    """Notes what is launched and waited for, by lease. `too_much(leases)`: whether memory runs out for these together;
    `where`: at which call."""

    def __init__(self, ahead: int, log: list[str]) -> None:
        self.passes_ahead = ahead
        self.log = log
        self.items: list[PrefillItem] = []
        """All items that were computed."""
        self.too_much: Callable[[list[int]], bool] = lambda _leases: False
        self.where = "launch"
        self.on_launch: Callable[[], object] = lambda: None
        self.glances = 0
        """The number of times that a pass is looked at before it is over."""

    def begin_prefill(self, items: Sequence[PrefillItem]) -> PlayedPrefill:
        pending = self.prepare_prefill(items)
        pending.launch()
        return pending

    def prepare_prefill(self, items: Sequence[PrefillItem]) -> PlayedPrefill:
        pending = PlayedPrefill(self, items)
        pending.note("prepare")
        return pending

    def done(self) -> list[str]:
        """Returns the log without the lines about preparing."""
        return [line for line in self.log if not line.startswith("prepare")]


class PlayedPrefill:
    def __init__(self, engine: PlayedEngine, items: Iterable[PrefillItem]) -> None:
        self._engine = engine
        self._items = list(items)

    def note(self, what: str) -> None:
        leases = [item.lease for item in self._items]
        self._engine.log.append(" ".join([what, *map(str, leases)]))
        if self._engine.where == what and self._engine.too_much(leases):
            raise MemoryError(what)

    def launch(self) -> None:
        self._engine.on_launch()
        self.note("launch")

    def finish(self, pulse: Pulse, on_computed: Callable[[], None] = lambda: None) -> list[TokenOutcome | None]:
        for _ in range(self._engine.glances):
            pulse.report()
        self.note("finish")
        pulse.beat()
        on_computed()
        self._engine.items += self._items
        return [
            None if item.sampling is None else SampledToken(7, len(item.sampling.output), None, None)
            for item in self._items
        ]
