"""The clock of the config: it jumps from one event to the next. Nothing is drawn here and no clock is read."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from semipd.bench.arrivals import Arrival
from semipd.bench.scoring.timeline import LoadSample
from semipd.core.config import REVIEW_S
from semipd.core.request import Slo
from semipd.policies.contract import Policy
from semipd.sim.execution_times import Times
from semipd.sim.request import SimRequest
from semipd.sim.server import Server, Settings

SAMPLE_S = 0.5
WINDOW_SAMPLES = 60
"""Of the timeline's throughput, as the server's own window of 30 s."""


@dataclass(frozen=True, slots=True)
class Replayed:
    lives: list[SimRequest]
    """By arrival."""
    server: Server
    timeline: tuple[LoadSample, ...]
    end_s: float


def replay(
    policy: Policy,
    due: Sequence[Arrival],
    settings: Settings,
    times: Times,
    *,
    count_until_s: float = math.inf,
    until_s: float = math.inf,
    progress: Callable[[float], None] | None = None,
) -> Replayed:
    """What becomes of these requests, until all are over or that moment has come.

    `count_until_s`: tokens that come later don't count as throughput. `progress` is told the simulated time at each
    sample of the timeline.
    """
    slos: dict[tuple[float, float], Slo] = {}
    lives = [
        SimRequest(
            arrival.index,
            arrival.at_s,
            arrival.entry.prompt_len,
            arrival.entry.output_len,
            slos.setdefault(
                (arrival.entry.ttft_slo_s, arrival.entry.tpot_slo_s),
                Slo(arrival.entry.ttft_slo_s, arrival.entry.tpot_slo_s),
            ),
        )
        for arrival in due
    ]
    server = Server(policy, settings, times, count_until_s)
    timeline = Timeline(server, policy.name)
    prefill, decode, arrive_s = server.prefill, server.decode, settings.overheads.arrive_s
    coming, now = 0, 0.0
    while True:
        moment = min(
            prefill.end_s,
            decode.end_s,
            lives[coming].sent_s + arrive_s if coming < len(lives) else math.inf,
            server.reviewed_s + REVIEW_S if server.alive else math.inf,
            prefill.wake_s(now),
            decode.wake_s(now),
        )
        if moment == math.inf or moment > until_s:
            break
        now = server.now_s = max(now, moment)
        while timeline.due_s <= now:
            timeline.look()
            if progress is not None:
                progress(now)
        if decode.end_s <= now:
            server.step_done()
        if prefill.end_s <= now:
            server.batch_done()
        while coming < len(lives) and lives[coming].sent_s + arrive_s <= now:
            server.submit(lives[coming])
            coming += 1
        server.act()
        prefill.begin(now)
        decode.begin(now)
        prefill.begin(now)  # decode may just have left it the turn
        prefill.rate(now, decode.sms)
        decode.rate(now, prefill.sms)
    return Replayed(lives, server, tuple(timeline.samples), now)


class Timeline:
    """A look at the server every half second of simulated time, as `semipd bench` takes it of a real one."""

    def __init__(self, server: Server, policy: str) -> None:
        self.samples: list[LoadSample] = []
        self.due_s = 0.0
        self._server = server
        self._policy = policy
        self._tokens: list[int] = []

    def look(self) -> None:
        """As it was before what happens now."""
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
                policy=server.host.name,
            )
        )
        self.due_s += SAMPLE_S
