"""The clock of the simulator: it jumps from one event to the next. Nothing is drawn here and no clock is read."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

from semipd.bench.arrivals import TraceArrival
from semipd.bench.scoring.timeline import LoadSample
from semipd.coordinator.policy_host import PolicyHost
from semipd.core.config import REVIEW_S
from semipd.core.request import Slo
from semipd.policies.contract import Policy
from semipd.sim.execution_times import Times
from semipd.sim.request import SimRequest, SimSequence
from semipd.sim.server import SimServer
from semipd.sim.settings import SimSettings

SAMPLE_S = 0.5
"""Seconds between two samples of the timeline."""
WINDOW_SAMPLES = 60
"""Samples over which the timeline's throughput is counted, as the server's own window of 30 s."""


@dataclass(frozen=True, slots=True)
class Replayed:
    """The result of a replay."""

    requests: list[SimRequest]
    """All requests, by arrival."""
    server: SimServer
    timeline: tuple[LoadSample, ...]
    end_s: float
    failures: list[str]
    """The reasons why the policy was replaced; empty: it was not."""

    @property
    def sequences(self) -> list[SimSequence]:
        """The samples of all requests, by arrival."""
        return [sequence for request in self.requests for sequence in request.sequences]


def replay(
    policy: Policy,
    due: Sequence[TraceArrival],
    settings: SimSettings,
    times: Times,
    *,
    count_until_s: float = math.inf,
    until_s: float = math.inf,
    progress: Callable[[float], None] | None = None,
) -> Replayed:
    """Replays arrivals through a policy, until all requests are over or the moment `until_s` has come.

    Tokens that come after `count_until_s` do not count as throughput. `progress` is told the simulated time at each
    sample of the timeline. A policy that fails is replaced by the fallback, as in the server.
    """
    failures: list[str] = []

    def failed(name: str, why: str) -> None:
        failures.append(f"policy {name} was replaced by the fallback: it {why}")

    host = PolicyHost(policy, 0.0, failed, budget=lambda _seconds: nullcontext())
    requests = requests_of(due)
    server = SimServer(host, settings, times, count_until_s)
    timeline = TimelineSampler(server, progress)
    play(server, deque(requests), until_s, timeline)
    return Replayed(requests, server, tuple(timeline.samples), server.now_s, failures)


def requests_of(due: Sequence[TraceArrival]) -> list[SimRequest]:
    """Returns the requests of a trace's arrivals."""
    slos: dict[tuple[float, float], Slo] = {}
    requests: list[SimRequest] = []
    number = 0
    for arrival in due:
        entry = arrival.entry
        wanted = (entry.ttft_slo_s, entry.tpot_slo_s)
        slo = slos.setdefault(wanted, Slo(*wanted))
        request = SimRequest(
            arrival.index, arrival.at_s, entry.prompt_len, entry.output_len, slo, first=number, samples=entry.samples
        )
        request.priority = entry.priority
        request.deadline_after_s, request.cancel_after_s = entry.deadline_s, entry.cancel_after_s
        requests.append(request)
        number += entry.samples
    return requests


def play(
    server: SimServer, coming: deque[SimRequest], until_s: float = math.inf, timeline: TimelineSampler | None = None
) -> None:
    """Sends what is to come, which is in the order of arrival, to the server, and lets it work until all requests are
    over or the moment `until_s` has come. Then another call goes on from there."""
    prefill, decode, arrive_s = server.prefill, server.decode, server.settings.overheads.arrive_s
    now = server.now_s
    while True:
        moment = min(
            prefill.end_s,
            decode.end_s,
            coming[0].sent_s + arrive_s if coming else math.inf,
            server.reviewed_s + REVIEW_S if server.alive else math.inf,
            prefill.wake_s(now),
            decode.wake_s(now),
            server.next_limit_s,
        )
        if moment == math.inf or moment > until_s:
            return
        now = server.now_s = max(now, moment)
        if timeline is not None and timeline.due_s <= now:
            timeline.look(now)
        if decode.end_s <= now:
            server.step_done()
        if prefill.end_s <= now:
            server.batch_done()
        while coming and coming[0].sent_s + arrive_s <= now:
            server.submit(coming.popleft())
        server.act()
        prefill.begin(now)
        decode.begin(now)
        prefill.begin(now)  # decode may just have left it the time slice
        prefill.rate(now, decode.sms)
        decode.rate(now, prefill.sms)


class TimelineSampler:
    """Looks at the server every half second of simulated time, as `semipd bench` looks at a real one."""

    def __init__(self, server: SimServer, progress: Callable[[float], None] | None = None) -> None:
        self.samples: list[LoadSample] = []
        self.due_s = 0.0
        """The moment of the next sample."""
        self._server = server
        self._progress = progress
        self._tokens: list[int] = []

    def look(self, now: float) -> None:
        """Takes all samples that are due, of the server as it was before what happens now."""
        while self.due_s <= now:
            self._sample()
            if self._progress is not None:
                self._progress(now)

    def _sample(self) -> None:
        server = self._server
        self._tokens.append(server.tokens.total)
        window = self._tokens[-WINDOW_SAMPLES - 1 :]
        total = server.settings.pages
        self.samples.append(
            LoadSample(
                at_s=self.due_s,
                waiting=server.waiting,
                prefilling=server.prefilling,
                decoding=server.decoding,
                used_pages=total - server.free_pages,
                total_pages=total,
                prefill_share=server.shares.prefill,
                decode_share=server.shares.decode,
                output_tokens_per_s=(window[-1] - window[0]) / (WINDOW_SAMPLES * SAMPLE_S),
                policy=server.policy.name,
            )
        )
        self.due_s += SAMPLE_S
