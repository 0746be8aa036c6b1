"""The paper's controller: semi-PD (Hong et al., arXiv 2504.19867), section 5, Algorithm 1 and equations 1 to 4."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from semipd.core.partition import FULL, Shares
from semipd.core.plan import Plan
from semipd.core.snapshot import Snapshot
from semipd.policies.contract import Policy
from semipd.policies.policy_options import PolicyOptions, option
from semipd.policies.toolkit.ordering import OrderName, order_option, prompt_order

KEPT = 32
"""The number of latest windows that the model is fitted to."""
LEAST_SPARE = 1e-3
"""The least part of the share beyond λ, in percent; with less, the queue counts as one that never ends."""


@dataclass(frozen=True, slots=True)
class LatencyCurves:
    """Gives TTFT and TPOT by relative share, in percent. Both are in the unit of the observations: here, the SLO."""

    a1: float
    load: float
    """λ of the paper."""
    b1: float
    a2: float
    b2: float

    def ttft(self, x: float) -> float:
        """Returns equation 3: TTFT(x) = a1/(x − λ) + b1; infinite where the queue would grow without end."""
        return self.a1 / (x - self.load) + self.b1 if x - self.load > LEAST_SPARE else math.inf

    def tpot(self, y: float) -> float:
        """Returns equation 4: TPOT(y) = a2/y + b2."""
        return self.a2 / y + self.b2


@dataclass(frozen=True, slots=True)
class ControlWindow:
    """Holds what one window showed: shares relative to each other, in percent, and latencies in units of the SLO.

    A latency is None where no observation had an SLO for it.
    """

    x: float
    y: float
    ttft: float | None
    tpot: float | None


def relative(shares: Shares) -> tuple[float, float]:
    """Returns the paper's (x', y') in percent: what each phase gets of a device for which both compete."""
    both = shares.prefill + shares.decode
    return 100 * shares.prefill / both, 100 * shares.decode / both


def fit(windows: Sequence[ControlWindow]) -> LatencyCurves:
    """Fits the model to the windows by least squares.

    λ is found by search; for a given λ the rest is linear. With fewer than three different shares λ is 0; with one
    share only, b1 and b2 are 0, too: the curve through what was seen there. Slopes are never negative, because more of
    the device never makes a phase slower.
    """
    firsts = [(w.x, w.ttft) for w in windows if w.ttft is not None]
    others = [(w.y, w.tpot) for w in windows if w.tpot is not None]
    a1, load, b1 = 0.0, 0.0, 0.0
    if firsts:
        lowest = min(x for x, _ in firsts)
        enough = len({round(x, 3) for x, _ in firsts}) > 2
        loads = [lowest * step / 20 for step in range(20)] if enough else [0.0]
        a1, b1, load = min(
            ((*_line([(1 / (x - at), t) for x, t in firsts]), at) for at in loads),
            key=lambda found: sum((found[0] / (x - found[2]) + found[1] - t) ** 2 for x, t in firsts),
        )
    a2, b2 = _line([(1 / y, t) for y, t in others])
    return LatencyCurves(a1, load, b1, a2, b2)


def _line(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Returns slope and offset, both at least 0. Where all points have one abscissa, the offset is 0."""
    if not points:
        return 0.0, 0.0
    n = len(points)
    mean_u, mean_t = sum(u for u, _ in points) / n, sum(t for _, t in points) / n
    spread = sum((u - mean_u) ** 2 for u, _ in points)
    through_origin = sum(u * t for u, t in points) / sum(u * u for u, _ in points)
    if spread <= 1e-12 * mean_u * mean_u:
        return through_origin, 0.0
    slope = sum((u - mean_u) * (t - mean_t) for u, t in points) / spread
    offset = mean_t - slope * mean_u
    if slope < 0:
        return 0.0, mean_t
    return (slope, offset) if offset >= 0 else (through_origin, 0.0)


def raised(
    shares: Shares, expected: Callable[[Shares], float], step: float, max_steps: int, *, prefill: bool
) -> Shares:
    """Runs the inner loop of Algorithm 1: raises one share by `step` until the model meets the SLO, at most `max_steps`
    times.

    Shares are at most 100. A rise beyond that is replaced by lowering the other share, which never falls below `step`.
    The loop ends where neither share can move.
    """
    x, y = (shares.prefill, shares.decode) if prefill else (shares.decode, shares.prefill)
    for _ in range(max_steps):
        if x + step <= 100:
            x += step
        elif y - step >= step:
            y -= step
        else:
            break
        shares = Shares(x, y) if prefill else Shares(y, x)
        if expected(shares) <= 1.0:
            break
    return shares


def adjusted(shares: Shares, seen: ControlWindow, model: LatencyCurves, step: float, max_steps: int) -> Shares:
    """Returns the shares that Algorithm 1 sets at the end of a window. An SLO fails where its latency is above 1."""
    ttft_fails = seen.ttft is not None and seen.ttft > 1.0
    tpot_fails = seen.tpot is not None and seen.tpot > 1.0
    if ttft_fails and not tpot_fails:
        return raised(shares, lambda s: model.ttft(relative(s)[0]), step, max_steps, prefill=True)
    if tpot_fails and not ttft_fails:
        return raised(shares, lambda s: model.tpot(relative(s)[1]), step, max_steps, prefill=False)
    return shares


class SemiPdOptions(PolicyOptions):
    window: int = option(200, "Prefill batches and decode steps after which the shares are looked at again.", low=1)
    step: float = option(5.0, "By how much one step of the algorithm changes a share.", unit="%", above=0, high=50)
    max_steps: int = option(10, "Most steps at the end of one window.", low=1)
    percentile: float = option(
        90.0, "Percentile of the observed TTFT and TPOT that is held against the SLO.", unit="%", above=0, high=100
    )
    ttft_ms: float | None = option(
        None, "TTFT of requests that name none. Not given: they don't count.", unit="ms", above=0, high=1e9
    )
    tpot_ms: float | None = option(
        None, "TPOT of requests that name none. Not given: they don't count.", unit="ms", above=0, high=1e9
    )
    prefill: float = option(FULL.prefill, "Prefill's share at the start.", unit="%", above=0, high=100)
    decode: float = option(FULL.decode, "Decode's share at the start.", unit="%", above=0, high=100)
    chunk: int | None = option(
        None,
        "Most prompt tokens in one prefill batch; longer prompts are cut. Not given: the engine's limit.",
        unit="tokens",
        low=1,
    )
    order: OrderName = order_option("fcfs")


class SemiPd(Policy):
    """The paper's Algorithm 1: shares follow the TTFT and TPOT that were observed, by a model fitted online.

    Line by line (semi-PD, section 5):

    * "every window_size iterations": `window` prefill batches and decode steps (`_window_is_over`);
    * "take the observed TTFT and TPOT at the percentile that the SLO names": `percentile`, nearest rank, over the first
      tokens and the completions of the window (`_seen`);
    * "update the model": TTFT(x) = a1/(x − λ) + b1 and TPOT(y) = a2/y + b2 (equations 3 and 4, from the M/M/1 queue
      of equations 1 and 2 and times of 100/x), by least squares over the latest windows (`fit`);
    * "if TTFT fails and TPOT holds, raise x by step_size until the model's TTFT at x' = x/(x+y) meets the SLO, or
      max_step; else if TPOT fails and TTFT holds, the same for y; when both fail or neither does, change nothing"
      (`adjusted`);
    * "x, y ≤ 100: a rise that would overflow is replaced by lowering the other" (`raised`).

    The paper has one SLO for all requests. Here each may name its own, so latencies are measured in units of it.
    Where a request names none, the options `ttft_ms` and `tpot_ms` take its place; without them it does not count.
    """

    name: ClassVar[str] = "semi-pd"
    Options = SemiPdOptions
    options: SemiPdOptions

    def __init__(self, options: SemiPdOptions | None = None) -> None:
        super().__init__(options)
        chosen = self.options
        self._ttft_s = chosen.ttft_ms / 1000 if chosen.ttft_ms else None
        self._tpot_s = chosen.tpot_ms / 1000 if chosen.tpot_ms else None
        self._order = prompt_order(chosen.order)
        self._shares = Shares(chosen.prefill, chosen.decode)
        self._windows: deque[ControlWindow] = deque(maxlen=KEPT)
        self._began_s = float("-inf")
        self._counted_s = float("-inf")
        self._iterations = 0

    def plan(self, snapshot: Snapshot) -> Plan:
        chosen = self.options
        if self._window_is_over(snapshot):
            seen = self._seen(snapshot)
            self._began_s, self._iterations = snapshot.now_s, 0
            self._windows.append(seen)
            self._shares = adjusted(self._shares, seen, fit(self._windows), chosen.step, chosen.max_steps)
        return Plan(prefill=self._order.ranked(snapshot).take(chosen.chunk), shares=self._shares)

    def _window_is_over(self, snapshot: Snapshot) -> bool:
        latest = self._counted_s
        for step in reversed(snapshot.observed.steps):
            if step.end_s <= self._counted_s:
                break
            latest = max(latest, step.end_s)
            self._iterations += 1
        self._counted_s = latest
        return self._iterations >= self.options.window

    def _seen(self, snapshot: Snapshot) -> ControlWindow:
        observed = snapshot.observed
        first = self._worst(
            (f.ttft_s, f.slo.ttft_s or self._ttft_s) for f in observed.first_tokens if f.at_s > self._began_s
        )
        other = self._worst(
            (c.tpot_s, c.slo.tpot_s or self._tpot_s) for c in observed.completions if c.at_s > self._began_s
        )
        x, y = relative(self._shares)
        return ControlWindow(x, y, first, other)

    def _worst(self, latencies: Iterable[tuple[float | None, float | None]]) -> float | None:
        """Returns the latency at the percentile in units of the SLO; None: no observation has an SLO."""
        ratios = sorted(seconds / slo for seconds, slo in latencies if seconds is not None and slo)
        if not ratios:
            return None
        return ratios[max(0, math.ceil(self.options.percentile / 100 * len(ratios)) - 1)]
