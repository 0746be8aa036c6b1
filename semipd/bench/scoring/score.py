"""Pure scoring of what load processes wrote down. How a run is scored is defined with the traces:

TTFT is from sending to the first token at the client, TPOT is (last token - first token) / (tokens - 1), and a request
counts when both are inside its SLO; refused and failed requests count as misses.

ITL is the time between two successive messages with tokens: what a reader waits. A server that sends several tokens in
a message has fewer and longer gaps. Throughput counts the tokens that came while requests arrived (0 to `duration_s`),
not those of the drain afterwards: a prompt's with its first token.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from semipd.bench.scoring.records import Outcome, RequestRecord
from semipd.bench.traces import LOOSE


@dataclass(frozen=True, slots=True)
class Distribution:
    """A distribution, in the unit of its values. Percentiles are nearest-rank: each is a value that was seen."""

    count: int
    mean: float
    p50: float
    p90: float
    p99: float
    max: float


@dataclass(frozen=True, slots=True)
class Score:
    """Seconds, and a second. A distribution is absent where nothing was seen."""

    sent: int
    done: int
    refused: int
    failed: int
    reasons: dict[str, int]
    """Why requests were refused or failed, and how many."""
    ttft_s: Distribution | None
    tpot_s: Distribution | None
    itl_s: Distribution | None
    largest_gap_s: Distribution | None
    end_to_end_s: Distribution | None
    queue_s: Distribution | None
    output_tokens_per_s: float
    total_tokens_per_s: float
    """Prompt and output."""
    attainment: float
    """The share of requests inside the tight SLO, 0 to 1."""
    attainment_loose: float
    ttft_attainment: float
    """Inside the tight SLO's TTFT, whatever TPOT is."""
    tpot_attainment: float
    good_requests_per_s: float
    """Requests inside the tight SLO, a second of the run."""


def percentile(ordered: Sequence[float], q: float) -> float:
    """Nearest rank: the smallest value that at least the share q (above 0, to 1) does not exceed."""
    return ordered[max(0, math.ceil(q * len(ordered) - 1e-9) - 1)]


def distribution(values: Iterable[float]) -> Distribution | None:
    ordered = sorted(values)
    if not ordered:
        return None
    p50, p90, p99 = (percentile(ordered, q) for q in (0.5, 0.9, 0.99))
    return Distribution(len(ordered), math.fsum(ordered) / len(ordered), p50, p90, p99, ordered[-1])


def score(records: Sequence[RequestRecord], duration_s: float) -> Score:
    """Scores at least one record, with its gaps. Latencies are those of requests that were done."""
    done = [r for r in records if r.outcome is Outcome.DONE]
    output, prompts = 0, 0
    for record in records:
        output += sum(tokens for at, tokens in record.token_times() if at <= duration_s)
        prompts += record.prompt_len if record.first_s is not None and record.first_s <= duration_s else 0
    met = sum(r.met() for r in records)
    return Score(
        sent=len(records),
        done=len(done),
        refused=sum(r.outcome is Outcome.REFUSED for r in records),
        failed=sum(r.outcome is Outcome.FAILED for r in records),
        reasons=dict(Counter(r.reason for r in records if r.reason).most_common()),
        ttft_s=distribution(_seen(r.ttft_s for r in done)),
        tpot_s=distribution(_seen(r.tpot_s for r in done)),
        itl_s=distribution(gap for r in done for gap in r.gaps_s),
        largest_gap_s=distribution(_seen(r.largest_gap_s for r in done)),
        end_to_end_s=distribution(_seen(r.end_to_end_s for r in done)),
        queue_s=distribution(_seen(r.queue_s for r in done)),
        output_tokens_per_s=output / duration_s,
        total_tokens_per_s=(output + prompts) / duration_s,
        attainment=met / len(records),
        attainment_loose=sum(r.met(LOOSE) for r in records) / len(records),
        ttft_attainment=sum(r.ttft_s is not None and r.ttft_s <= r.ttft_slo_s for r in done) / len(records),
        tpot_attainment=sum(r.tpot_s is None or r.tpot_s <= r.tpot_slo_s for r in done) / len(records),
        good_requests_per_s=met / duration_s,
    )


def _seen(values: Iterable[float | None]) -> list[float]:
    return [v for v in values if v is not None]
