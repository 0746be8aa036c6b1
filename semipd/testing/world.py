"""A small server in simulated time, for authors' tests: `semipd.sim` with the latencies of a `LatencyModel`.

It plays what `semipd simulate` plays: splits, time slices and mixed batches, priorities, deadlines, clients that leave,
several samples. Everything is a function of the arrivals and the policy: no clock is read and nothing is drawn.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from semipd.core.errors import Reason
from semipd.core.latency import LatencyModel
from semipd.core.partition import FULL, Mode, Shares
from semipd.core.plan import Admission, Plan
from semipd.core.request import Slo
from semipd.core.sms import splits
from semipd.core.snapshot import Limits, Snapshot, WaitingSequence
from semipd.policies.contract import Broken, Policy, ask_admission, ask_plan
from semipd.profiles.latency import shipped_model
from semipd.profiles.profile import Overheads
from semipd.sim.model_times import ModelTimes
from semipd.sim.replay import play
from semipd.sim.request import SimRequest
from semipd.sim.server import SimServer
from semipd.sim.settings import SimSettings

UNLIMITED = 1 << 30
"""Sequences in the queue of a world, which refuses nothing by itself."""

Ask = Callable[[Policy, Snapshot], Plan]


@dataclass(frozen=True, slots=True)
class Arrival:
    """A request to come."""

    at_s: float
    prompt_tokens: int
    output_tokens: int
    """Tokens of each sample."""
    slo: Slo = field(default_factory=Slo)
    priority: int = 0
    deadline_s: float | None = None
    """Seconds after its arrival at which the server ends it; None: it has no deadline."""
    cancel_after_s: float | None = None
    """Seconds after its arrival at which its client leaves; None: the client stays."""
    samples: int = 1


@dataclass(frozen=True, slots=True)
class Settings:
    """The server that is simulated. Its pages are of 16 tokens."""

    pages: int = 8192
    limits: Limits = field(default_factory=lambda: Limits(max_batch_tokens=8192, max_running=256))
    model: LatencyModel = field(default_factory=shipped_model)
    """The times of steps and passes on its device; policies see it as `limits.latency`."""
    sms: int = 132
    """Multiprocessors of its device; policies see them, and how they can be divided, as `limits.sms` and
    `limits.splits`."""
    shares: Shares = FULL
    """The shares until the policy asks for others."""


@dataclass(frozen=True, slots=True)
class Life:
    """The fate of a request. Times are in seconds; None: it did not come to that.

    Where it has several samples, TTFT and TPOT are those of the slowest, and `output` counts the tokens of all.
    """

    arrival: Arrival
    refused: str
    """Why the policy refused it; empty: it did not."""
    expired: bool
    """Its deadline passed before it was complete."""
    cancelled: bool
    """Its client left before it was complete."""
    first_token_s: float | None
    end_s: float | None
    ttft_s: float | None
    tpot_s: float | None
    """Mean seconds for each token after the first; None below two tokens."""
    output: int
    preemptions: int
    in_time: bool
    """It was complete, within everything that its SLO names."""

    @property
    def over(self) -> bool:
        return self.end_s is not None or self.expired or self.cancelled or bool(self.refused)


class World:
    """A simulated server, and the requests that come to it.

    `ask` is how the policy is asked for a plan; the default checks what it answers and raises Broken.
    """

    def __init__(
        self, policy: Policy, arrivals: Sequence[Arrival], settings: Settings | None = None, ask: Ask = ask_plan
    ) -> None:
        self.settings = settings = settings or Settings()
        self._asker = StrictAsker(policy, ask)
        self._arrivals = sorted(arrivals, key=lambda a: a.at_s)
        self._requests = requests_of(self._arrivals)
        self._coming = deque(self._requests)
        limits = replace(settings.limits, latency=settings.model, splits=splits(settings.sms), sms=settings.sms)
        sim = SimSettings(settings.pages, limits, NO_OVERHEADS, UNLIMITED, settings.shares)
        self._server = SimServer(self._asker, sim, ModelTimes(settings.model, settings.sms))

    def run(self, until_s: float = math.inf) -> list[Life]:
        """Lets all happen until all requests are over or that moment has come. Returns `lives`."""
        play(self._server, self._coming, until_s)
        return self.lives

    @property
    def lives(self) -> list[Life]:
        """The fate of the requests by now, by arrival."""
        done = self._server.decode.done
        return [life_of(a, r, done) for a, r in zip(self._arrivals, self._requests, strict=True)]

    @property
    def plans(self) -> list[tuple[float, Plan]]:
        """Every plan so far, and when it was made."""
        return self._asker.plans

    @property
    def now_s(self) -> float:
        return self._server.now_s

    @property
    def shares(self) -> Shares:
        """The shares as granted."""
        return self._server.shares

    @property
    def mode(self) -> Mode:
        return self._server.device.mode

    def snapshot(self) -> Snapshot:
        """Returns what the policy would see now."""
        return self._server.snapshot()

    def free_pages(self) -> int:
        """Returns the pages that nothing is on, nor will be by a batch that was given out."""
        return self._server.free_pages


NO_OVERHEADS = Overheads(arrive_s=0.0, turnaround_s=0.0, prepare_s=0.0, deliver_s=0.0, handover_s=0.0)


class StrictAsker:
    """Asks the policy and keeps its plans. An answer that breaks the contract raises Broken, where a server would
    replace the policy."""

    def __init__(self, policy: Policy, ask: Ask) -> None:
        self.plans: list[tuple[float, Plan]] = []
        self._policy = policy
        self._ask = ask

    @property
    def name(self) -> str:
        return self._policy.name

    def admit(self, snapshot: Snapshot, sequence: WaitingSequence) -> Admission:
        answer = ask_admission(self._policy, snapshot, sequence)
        if not answer.accept and not answer.why:
            raise Broken("a request is refused without a word why")
        return answer

    def plan(self, snapshot: Snapshot) -> Plan:
        plan = self._ask(self._policy, snapshot)
        self.plans.append((snapshot.now_s, plan))
        return plan


def requests_of(arrivals: Sequence[Arrival]) -> list[SimRequest]:
    """Returns the requests of these arrivals, which are in their order."""
    requests: list[SimRequest] = []
    first = 0
    for index, a in enumerate(arrivals):
        request = SimRequest(index, a.at_s, a.prompt_tokens, a.output_tokens, a.slo, first=first, samples=a.samples)
        request.priority, request.deadline_after_s, request.cancel_after_s = a.priority, a.deadline_s, a.cancel_after_s
        requests.append(request)
        first += a.samples
    return requests


def life_of(arrival: Arrival, request: SimRequest, done: int) -> Life:
    """Returns what has become of a request when decode step `done` was the last that was answered for."""
    samples = request.sequences
    ttfts = [s.ttft_s for s in samples if s.ttft_s is not None]
    tpots = [s.tpot_s for s in samples if s.tpot_s is not None]
    ttft_s = max(ttfts) if len(ttfts) == len(samples) else None
    end_s = request.end_s
    return Life(
        arrival=arrival,
        refused=request.why if request.refused else "",
        expired=request.reason in (Reason.EXPIRED_IN_QUEUE, Reason.EXPIRED_RUNNING),
        cancelled=request.reason == Reason.CANCELLED_BY_CLIENT,
        first_token_s=None if ttft_s is None else request.arrival_s + ttft_s,
        end_s=end_s,
        ttft_s=ttft_s,
        tpot_s=max(tpots, default=None) if end_s is not None else None,
        output=sum(s.output_by(done) for s in samples),
        preemptions=sum(s.preemptions for s in samples),
        in_time=end_s is not None and all(arrival.slo.met(t, s.tpot_s) for t, s in zip(ttfts, samples, strict=True)),
    )
