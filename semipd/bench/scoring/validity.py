"""Decides whether a run measured the target, and not the client."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from semipd.bench.scoring.records import UNFINISHED, Outcome, RequestRecord
from semipd.bench.scoring.score import Distribution

MAX_LATENESS_S = 0.020
"""Seconds at p99. A request that is sent later than this was not sent when it arrived, and a token that waits this long
in the client's event loop is stamped later than it came: half of the shortest TPOT that the traces ask for."""

MAX_BUSY = 0.90
"""Share of one core that a load process may use. Above it a queue builds up in front of the process itself."""


@dataclass(frozen=True, slots=True)
class ClientUse:
    """One load process over the run, from the first arrival to its last answer."""

    requests: int
    tokens: int
    wall_s: float
    cpu_s: float
    """CPU seconds of all its threads."""
    lateness_s: Distribution
    """Lateness of sending: sent - scheduled."""
    loop_lag_s: Distribution | None
    """Lateness of a timer that ticks all along: the time that a token may wait before it is stamped."""

    @property
    def busy(self) -> float:
        """The share of one core, 0 to 1; above 1 where several threads ran."""
        return self.cpu_s / self.wall_s if self.wall_s > 0 else 0.0


def problems(records: Sequence[RequestRecord], lateness: Distribution, clients: Sequence[ClientUse]) -> tuple[str, ...]:
    """Why the run is invalid, in words; empty where it is valid."""
    found = []
    if lateness.p99 > MAX_LATENESS_S:
        found.append(
            f"the client fell behind: 1 % of requests were sent more than {lateness.p99 * 1e3:.0f} ms late "
            f"(limit {MAX_LATENESS_S * 1e3:.0f} ms)"
        )
    busiest = max(client.busy for client in clients)
    if busiest > MAX_BUSY:
        found.append(f"a load process was {busiest:.0%} busy (limit {MAX_BUSY:.0%}); use more of them (--clients)")
    lag = max((client.loop_lag_s.p99 for client in clients if client.loop_lag_s), default=0.0)
    if lag > MAX_LATENESS_S:
        found.append(f"a load process stamped tokens up to {lag * 1e3:.0f} ms late (p99; limit the same)")
    errors = sum(r.outcome is Outcome.FAILED and r.reason != UNFINISHED for r in records)
    if errors > sum(r.outcome is Outcome.DONE for r in records):
        found.append(f"{errors} of {len(records)} requests ended in errors of the target")
    return tuple(found)
