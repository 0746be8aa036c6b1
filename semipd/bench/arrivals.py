"""The moments at which requests are sent: a Poisson process, drawn ahead, so that no server can slow it down."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from semipd.bench.errors import InputError
from semipd.bench.traces import TraceEntry


@dataclass(frozen=True, slots=True)
class TraceArrival:
    """One request to be sent `at_s` seconds after the start. `index` counts from 0 in the order of arrival."""

    index: int
    at_s: float
    entry: TraceEntry


def poisson_times(rate: float, duration_s: float, seed: int) -> list[float]:
    """Ascending seconds in [0, duration_s): a Poisson process of `rate` a second. The same for a seed anywhere."""
    random = Random(seed)
    times: list[float] = []
    at = 0.0
    while True:
        at -= math.log(1.0 - random.random()) / rate
        if at >= duration_s:
            return times
        times.append(at)


def arrivals(trace: Sequence[TraceEntry], rate: float, duration_s: float, seed: int) -> list[TraceArrival]:
    """Draws the arrivals. Entries come in the order of the trace, which begins again at its top when it is over.

    Raises InputError where rate or duration are not above 0, or where nothing at all arrives.
    """
    if not 0 < rate < math.inf:
        raise InputError(f"the rate must be above 0 requests a second, not {rate}")
    if not 0 < duration_s < math.inf:
        raise InputError(f"the duration must be above 0 seconds, not {duration_s}")
    found = [TraceArrival(i, at, trace[i % len(trace)]) for i, at in enumerate(poisson_times(rate, duration_s, seed))]
    if not found:
        raise InputError(f"no request arrives within {duration_s} s at {rate} requests a second with seed {seed}")
    return found
