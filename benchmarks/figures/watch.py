"""A policy that is watched while it plans: on which shares and in which mode the server was."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from semipd.core.partition import Mode
from semipd.core.plan import Admission, Plan
from semipd.core.snapshot import Snapshot, WaitingSequence
from semipd.policies.contract import Policy


@dataclass(slots=True)
class Bin:
    """Seconds in each mode, and of those that were split, the shares in percent times the seconds."""

    modes: dict[Mode, float] = field(default_factory=lambda: dict.fromkeys(Mode, 0.0))
    prefill: float = 0.0
    decode: float = 0.0

    def plain(self) -> dict[str, Any]:
        """Modes as shares of the time, shares as means; absent where there was nothing."""
        seconds, split = sum(self.modes.values()), self.modes[Mode.SPLIT]
        return {
            "modes": {mode.value: round(self.modes[mode] / seconds, 4) if seconds else 0.0 for mode in Mode},
            "prefill_share": round(self.prefill / split, 2) if split else None,
            "decode_share": round(self.decode / split, 2) if split else None,
        }


class Watched(Policy):
    """Answers as the policy inside does, and adds up what it saw, by bins of `bin_s` seconds.

    Only time in which both phases had work counts: where one is alone the engine gives it the device by itself.
    """

    name = "watched"

    def __init__(self, inner: Policy, bin_s: float, end_s: float) -> None:
        super().__init__(inner.options)
        self.name = inner.name  # type: ignore[misc]  # the server reports the policy that is watched
        self._inner = inner
        self._bin_s = bin_s
        self._last: tuple[float, Mode, float, float] | None = None
        self.bins = [Bin() for _ in range(max(1, round(end_s / bin_s)))]

    def admit(self, snapshot: Snapshot, sequence: WaitingSequence) -> Admission:
        return self._inner.admit(snapshot, sequence)

    def plan(self, snapshot: Snapshot) -> Plan:
        plan = self._inner.plan(snapshot)
        if self._last is not None:
            self._add(*self._last, until_s=snapshot.now_s)
        both = bool(snapshot.running) and (bool(plan.prefill) or snapshot.prefill_batches > 0)
        shares = snapshot.shares if plan.shares is None else plan.shares
        self._last = (snapshot.now_s, plan.mode, shares.prefill, shares.decode) if both else None
        return plan

    def _add(self, since_s: float, mode: Mode, prefill: float, decode: float, *, until_s: float) -> None:
        place = int(since_s / self._bin_s)
        if place < len(self.bins):
            took = until_s - since_s
            self.bins[place].modes[mode] += took
            if mode is Mode.SPLIT:
                self.bins[place].prefill += took * prefill
                self.bins[place].decode += took * decode
