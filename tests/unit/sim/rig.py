"""A device whose times can be computed in the head, and traffic of a few requests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from semipd.bench.arrivals import TraceArrival
from semipd.bench.traces import TraceEntry
from semipd.core.partition import Mode, Shares
from semipd.core.plan import Plan
from semipd.core.sms import splits
from semipd.core.snapshot import Limits, Snapshot
from semipd.policies.contract import Policy
from semipd.policies.toolkit.batching import fill_batch
from semipd.policies.toolkit.ordering import by_priority_then_arrival
from semipd.profiles.profile import Overheads
from semipd.sim.replay import Replayed, replay
from semipd.sim.settings import SimSettings

NOTHING = Overheads(0.0, 0.0, 0.0, 0.0, 0.0)
SMS = 128
"""Splits are 16, 32, ... of these."""


@dataclass
class Flat:
    """A step takes 10 ms, a pass 1 ms a token on all SMs, and twice that on half of them. Contention costs nothing."""

    step_s: float = 0.010
    token_s: float = 0.001
    asked: list[tuple[str, int, int]] = field(default_factory=list)
    """Phase, SMs, SMs of the other."""
    step_ratio: float = 1.0
    pass_ratio: float = 1.0

    def decode_s(self, rows: int, context_tokens: int, sms: int, other_sms: int) -> float:
        self.asked.append(("decode", sms, other_sms))
        return self.step_s * SMS / sms

    def prefill_s(self, tokens: int, pairs: float, sms: int, other_sms: int) -> float:
        self.asked.append(("prefill", sms, other_sms))
        return tokens * self.token_s * SMS / sms

    def mixed_s(self, rows: int, context_tokens: int, tokens: int, pairs: float, sms: int, other_sms: int) -> float:
        """Both, one after the other."""
        self.asked.append(("mixed", sms, other_sms))
        return (self.step_s * (rows > 0) + tokens * self.token_s) * SMS / sms

    def step_by_turns(self, rows: int) -> float:
        return self.step_ratio

    def pass_by_turns(self, tokens: int) -> float:
        return self.pass_ratio


class Plain(Policy):
    """Serves by priority and arrival, at fixed shares, mode and chunk; keeps the snapshots that it saw."""

    name = "plain"

    def __init__(
        self,
        shares: Shares | None = None,
        mode: Mode = Mode.SPLIT,
        chunk: int = 1 << 20,
        step_tokens: int | None = None,
    ) -> None:
        super().__init__()
        self._step_tokens = step_tokens
        self._shares, self._mode, self._chunk = shares, mode, chunk
        self.seen: list[Snapshot] = []

    def plan(self, snapshot: Snapshot) -> Plan:
        self.seen.append(snapshot)
        batch = fill_batch(snapshot, by_priority_then_arrival(snapshot.waiting), self._chunk)
        return Plan(batch, shares=self._shares, mode=self._mode, step_tokens=self._step_tokens)


def due(*requests: tuple[float, int, int]) -> list[TraceArrival]:
    """(at_s, prompt tokens, output tokens)."""
    return [
        TraceArrival(i, at, TraceEntry(prompt, output, 1.0, 0.1)) for i, (at, prompt, output) in enumerate(requests)
    ]


def settings(
    pages: int = 1000, overheads: Overheads = NOTHING, max_running: int = 512, max_waiting: int = 512
) -> SimSettings:
    limits = Limits(8192, max_running, frozenset(Mode), splits=splits(SMS), sms=SMS)
    return SimSettings(pages, limits, overheads, max_waiting)


def run(
    policy: Policy, requests: Sequence[TraceArrival], times: Flat | None = None, server: SimSettings | None = None
) -> Replayed:
    return replay(policy, requests, server or settings(), times or Flat())
