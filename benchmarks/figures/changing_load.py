"""A load that changes its kind: chat, then long prompts, then chat again; and what a policy does about it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from figures.cases import Contender
from figures.watch import Watched
from semipd.bench.arrivals import TraceArrival, arrivals
from semipd.bench.scoring.records import Outcome, RequestRecord
from semipd.bench.settings import RunSettings
from semipd.bench.traces import load_trace
from semipd.policies.registry import make_policy
from semipd.profiles.profile import Profile
from semipd.sim.replay import replay
from semipd.sim.run import SimConfig, report

BIN_S = 5.0
"""Seconds over which attainment and load are averaged."""
LOOK_S = 2.5
"""Seconds over which shares and modes are averaged."""
DRAIN_S = 60.0


@dataclass(frozen=True, slots=True)
class Phase:
    trace: str
    rate: float
    seconds: float


PHASES = (Phase("chat", 55.0, 40.0), Phase("long", 6.0, 40.0), Phase("chat", 55.0, 40.0))
CONTENDERS = (Contender("adaptive"), Contender("semi-pd"))


def shifting(phases: Sequence[Phase], seed: int) -> list[TraceArrival]:
    """The arrivals of all phases, one after the other; each draws its own."""
    found: list[TraceArrival] = []
    begin = 0.0
    for number, phase in enumerate(phases):
        for arrival in arrivals(load_trace(phase.trace), phase.rate, phase.seconds, seed + number):
            found.append(replace(arrival, index=len(found), at_s=begin + arrival.at_s))
        begin += phase.seconds
    return found


def follow(who: Contender, profile: Profile, phases: Sequence[Phase] = PHASES, seed: int = 0) -> dict[str, Any]:
    """One policy object through all of it, in simulated time."""
    seconds = sum(phase.seconds for phase in phases)
    config = SimConfig(who.policy, dict(who.options), profile)
    policy = Watched(make_policy(who.policy, dict(who.options)), LOOK_S, seconds)
    due = shifting(phases, seed)
    done = replay(
        policy,
        due,
        config.settings(),
        config.times,
        count_until_s=seconds,
        until_s=seconds + DRAIN_S,
    )
    asked = RunSettings("", "shift", len(due) / seconds, seconds, seed, drain_s=DRAIN_S)
    found = report(config, asked, done)
    return {
        "policy": who.policy,
        "options": dict(who.options),
        "problems": list(found.problems),
        "looks": [one.plain() for one in policy.bins],
        "bins": binned(found.records, BIN_S, seconds),
        "phases": phase_rows(found.records, phases),
    }


def binned(records: Sequence[RequestRecord], bin_s: float, end_s: float) -> list[dict[str, Any]]:
    """Bins requests by the time they were sent: offered load and attainment."""
    return [
        {"prompt_tokens_per_s": round(sum(r.prompt_len for r in sent) / bin_s, 1)} | attained(sent)
        for begin in range(round(end_s / bin_s))
        for sent in [[r for r in records if begin * bin_s <= r.scheduled_s < (begin + 1) * bin_s]]
    ]


def phase_rows(records: Sequence[RequestRecord], phases: Sequence[Phase]) -> list[dict[str, Any]]:
    rows, begin = [], 0.0
    for phase in phases:
        sent = [r for r in records if begin <= r.scheduled_s < begin + phase.seconds]
        rows.append({"trace": phase.trace, "rate": phase.rate, "seconds": phase.seconds} | attained(sent))
        begin += phase.seconds
    return rows


def attained(sent: Sequence[RequestRecord]) -> dict[str, float | None]:
    """Shares of the requests; absent where there were none. What has no TPOT, or never came, is judged as in a run."""
    if not sent:
        return {"ttft": None, "tpot": None, "both": None}
    done = [r for r in sent if r.outcome is Outcome.DONE]
    ttft = sum(r.ttft_s is not None and r.ttft_s <= r.ttft_slo_s for r in done)
    tpot = sum(r.tpot_s is None or r.tpot_s <= r.tpot_slo_s for r in done)
    both = sum(r.met() for r in sent)
    return {name: round(n / len(sent), 4) for name, n in (("ttft", ttft), ("tpot", tpot), ("both", both))}
