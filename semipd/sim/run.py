"""Simulates a run, and reports it as `semipd bench run` reports a real one."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from semipd.bench.arrivals import arrivals
from semipd.bench.provenance import provenance
from semipd.bench.scoring.records import UNFINISHED, Outcome, RequestRecord
from semipd.bench.scoring.report import RunReport
from semipd.bench.scoring.score import distribution, score
from semipd.bench.scoring.target_info import TargetInfo
from semipd.bench.settings import RunSettings
from semipd.bench.traces import TraceEntry, load_trace, scaled
from semipd.core.config import GPU_RESERVE_BYTES, PAGE_SIZE, pages_for
from semipd.core.errors import ConfigError, InputError, RunFailed
from semipd.core.partition import Mode
from semipd.core.sms import splits
from semipd.core.snapshot import Limits
from semipd.policies.registry import make_policy
from semipd.profiles.latency import latency_model
from semipd.profiles.profile import Profile
from semipd.sim.execution_times import ProfileTimes, Times
from semipd.sim.replay import Replayed, replay
from semipd.sim.request import SimRequest, SimSequence
from semipd.sim.settings import SimSettings

TARGET = "simulated time"


@dataclass(frozen=True, slots=True)
class SimConfig:
    """A policy on a server on a GPU, which is simulated."""

    policy: str
    policy_options: Mapping[str, str]
    profile: Profile
    pages: int = 0
    """Pages in the pool; 0: what fits beside the weights."""
    max_batch_tokens: int = 8192
    max_running: int = 512
    max_waiting: int = 512
    times: Times = field(init=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "times", ProfileTimes(self.profile))

    def settings(self) -> SimSettings:
        """Returns the settings of the simulated server."""
        profile = self.profile
        limits = Limits(
            max_batch_tokens=self.max_batch_tokens,
            max_running=self.max_running,
            modes=frozenset({Mode.SPLIT, Mode.TURNS} | ({Mode.MIXED} if profile.mixed else set())),
            decode_capture_sizes=profile.buckets.decode,
            latency=latency_model(profile),
            splits=splits(profile.gpu.sms),
            sms=profile.gpu.sms,
        )
        return SimSettings(self.pages or fitting_pages(profile), limits, profile.overheads, self.max_waiting)

    def target(self) -> TargetInfo:
        """Returns what the report says about the simulated server."""
        profile = self.profile
        options = " ".join(f"{name}={value}" for name, value in self.policy_options.items())
        return TargetInfo(
            protocol="simulated",
            model=profile.model.name,
            vocab_size=profile.model.vocab_size,
            max_context=profile.model.max_context,
            counting="each",
            server={
                "device": profile.gpu.name,
                "policy": " ".join(filter(None, (self.policy, options))),
                "profile": "recorded" if profile.source.recorded else "not recorded, see its `source`",
            },
        )


def fitting_pages(profile: Profile) -> int:
    """Returns the pages of the largest pool that fits beside the weights."""
    left = profile.gpu.memory_bytes - profile.model.weight_bytes - GPU_RESERVE_BYTES
    return max(0, left) // (PAGE_SIZE * profile.model.kv_token_bytes)


def simulate(config: SimConfig, asked: RunSettings, progress: Callable[[float], None] | None = None) -> RunReport:
    """Simulates a fresh policy under `asked.trace` at `asked.rate`.

    `progress` is told the simulated seconds now and then.

    Raises InputError where trace, rate, duration, scale, policy, an option or the pool can't be simulated, and
    RunFailed where not one request was done. A run whose policy was replaced by the fallback is invalid.
    """
    trace = load_trace(asked.trace)
    if not asked.scale > 0:
        raise InputError(f"the scale must be above 0, not {asked.scale}")
    if asked.scale != 1.0:
        trace = scaled(trace, asked.scale)
    due = arrivals(trace, asked.rate, asked.duration_s, asked.seed)
    settings = config.settings()
    check_fit(trace, config.profile, settings)
    try:
        policy = make_policy(config.policy, config.policy_options)
    except ConfigError as error:
        raise InputError(str(error)) from None
    done = replay(
        policy,
        due,
        settings,
        config.times,
        count_until_s=asked.duration_s,
        until_s=asked.duration_s + asked.drain_s,
        progress=progress,
    )
    return report(config, asked, done)


def check_fit(trace: list[TraceEntry], profile: Profile, settings: SimSettings) -> None:
    """Raises InputError where a request is longer than the model's context, or than the pool."""
    longest = max(trace, key=lambda e: e.prompt_len + e.output_len)
    tokens = longest.prompt_len + longest.output_len
    if tokens > profile.model.max_context:
        raise InputError(
            f"the trace has a request of {longest.prompt_len} + {longest.output_len} tokens, and the context of "
            f"{profile.model.name} ends at {profile.model.max_context}; shorten all of them with --scale"
        )
    if pages_for(tokens) > settings.pages:
        raise InputError(f"a request of {tokens} tokens does not fit into a pool of {settings.pages} pages")


def report(config: SimConfig, asked: RunSettings, done: Replayed) -> RunReport:
    """Returns the report of a replay. Raises RunFailed where not one request was done."""
    deliver_s = config.profile.overheads.deliver_s
    records = tuple(record(request, deliver_s, asked) for request in done.requests)
    if not any(r.outcome is Outcome.DONE for r in records):
        raise RunFailed(f"not one of {len(records)} requests was done; is the rate far beyond what the GPU can do?")
    tokens = done.server.tokens
    scored = replace(
        score(records, asked.duration_s),
        itl_s=done.server.gaps.distribution(),
        output_tokens_per_s=tokens.output_in_time / asked.duration_s,
        total_tokens_per_s=(tokens.output_in_time + tokens.prompt_in_time) / asked.duration_s,
    )
    lateness = distribution(0.0 for _ in records)
    assert lateness is not None
    return RunReport(
        settings=replace(asked, target=TARGET),
        target=config.target(),
        provenance=provenance(),
        problems=tuple(done.failures),
        score=scored,
        lateness_s=lateness,
        clients=(),
        timeline=done.timeline,
        records=records,
    )


def record(request: SimRequest, deliver_s: float, asked: RunSettings) -> RequestRecord:
    """Returns what the client would have written down. Of the gaps between its tokens, the longest alone is kept.

    A request of several samples is judged by one of them, see `judged`; it is done when all are complete.
    """
    over = asked.duration_s + asked.drain_s
    sample, end = judged(request), request.end_s
    first = sample.first_token_s
    finished = end is not None and end + deliver_s <= over
    outcome = Outcome.DONE if finished else Outcome.REFUSED if request.refused else Outcome.FAILED
    if finished and end is not None:
        done_s = end + deliver_s
    elif request.refused:
        done_s = request.arrival_s
    else:
        done_s = over if request.stopped_s is None else min(over, request.stopped_s + deliver_s)
    return RequestRecord(
        index=request.index,
        prompt_len=request.prompt_len,
        output_len=request.output_len,
        ttft_slo_s=request.slo.ttft_s or sys.float_info.max,
        tpot_slo_s=request.slo.tpot_s or sys.float_info.max,
        scheduled_s=request.sent_s,
        sent_s=request.sent_s,
        outcome=outcome,
        reason="" if finished else request.reason or UNFINISHED,
        tokens=sample.output,
        first_s=None if first is None else first + deliver_s,
        last_s=None if first is None else sample.last_token_s + deliver_s,
        done_s=done_s,
        queue_s=None if sample.prefill_start_s is None else sample.prefill_start_s - request.arrival_s,
        largest_gap_s=sample.largest_gap_s if sample.output > 1 else None,
        gaps_s=(),
        counts=(),
    )


def judged(request: SimRequest) -> SimSequence:
    """Returns the sample that a request is judged by: the one whose TTFT or TPOT is the largest multiple of its SLO, so
    that the request is inside its SLO where all samples are. A sample without a first token comes before all others."""
    if len(request.sequences) == 1:
        return request.sequences[0]

    def times_slo(sample: SimSequence) -> float:
        ttft, tpot = sample.ttft_s, sample.tpot_s
        if ttft is None:
            return math.inf
        slo = request.slo
        return max(ttft / (slo.ttft_s or math.inf), (tpot or 0.0) / (slo.tpot_s or math.inf))

    return max(request.sequences, key=times_slo)
