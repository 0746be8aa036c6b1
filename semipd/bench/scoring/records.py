"""The record of one request, as a load process writes it down. All times are seconds after the start of the run."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from semipd.core.request import Slo, mean_tpot_s


class Outcome(StrEnum):
    DONE = "done"
    """It has all the tokens that were asked for."""
    REFUSED = "refused"
    """The server had no room (RESOURCE_EXHAUSTED, HTTP 429 and 503)."""
    FAILED = "failed"
    """Anything else, also what had not ended when the run did."""


UNFINISHED = "not finished when the run ended"
"""The reason of a request that the client itself gave up; all others come from the target."""


@dataclass(frozen=True, slots=True)
class RequestRecord:
    """`first_s`, `last_s`: the first and the last token at the client; absent where there was none."""

    index: int
    prompt_len: int
    output_len: int
    ttft_slo_s: float
    tpot_slo_s: float
    scheduled_s: float
    sent_s: float
    outcome: Outcome
    reason: str
    """Empty for what is done."""
    tokens: int
    first_s: float | None
    last_s: float | None
    done_s: float
    queue_s: float | None
    """Seconds in the server's queue, as the server measured them; None: it does not tell."""
    largest_gap_s: float | None
    """Seconds between two successive messages with tokens; None below two messages."""
    gaps_s: tuple[float, ...]
    """All of them, in order. Left out of saved reports unless asked for."""
    counts: tuple[int, ...]
    """Tokens in each message; empty where each had one."""

    @property
    def ttft_s(self) -> float | None:
        """Seconds from sending to the first token."""
        return None if self.first_s is None else self.first_s - self.sent_s

    @property
    def tpot_s(self) -> float | None:
        """(last token - first token) / (tokens - 1); absent below two tokens."""
        if self.first_s is None or self.last_s is None:
            return None
        return mean_tpot_s(self.last_s - self.first_s, self.tokens)

    @property
    def end_to_end_s(self) -> float | None:
        """Seconds from sending to the last token."""
        return None if self.last_s is None else self.last_s - self.sent_s

    def met(self, factor: float = 1.0) -> bool:
        """Returns whether it is done with TTFT and TPOT inside its SLO times the factor. One token has no TPOT to
        miss."""
        if self.outcome is not Outcome.DONE or self.ttft_s is None:
            return False
        return Slo(self.ttft_slo_s, self.tpot_slo_s).met(self.ttft_s, self.tpot_s, factor)

    def token_times(self) -> list[tuple[float, int]]:
        """(seconds, tokens) of each message with tokens. Needs the gaps."""
        if self.first_s is None:
            return []
        at = self.first_s
        times = [at]
        for gap in self.gaps_s:
            at += gap
            times.append(at)
        return list(zip(times, self.counts or [1] * len(times), strict=True))
