"""A client's request, validated and tokenised, and the pieces of its answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from semipd.core.errors import RequestError


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """The rules by which the next token is drawn, applied in this order: bias, penalties, temperature, top-k, top-p,
    min-p."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    """0: off."""
    min_p: float = 0.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repetition_penalty: float = 1.0
    seed: int = 0
    """Unsigned 64 bits. Seed and output position alone decide each draw."""
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    logprobs: bool = False
    top_logprobs: int = 0

    @property
    def greedy(self) -> bool:
        return self.temperature == 0.0

    @property
    def penalised(self) -> bool:
        """Says that the draw depends on the tokens before it."""
        return self.frequency_penalty != 0.0 or self.presence_penalty != 0.0 or self.repetition_penalty != 1.0


@dataclass(frozen=True, slots=True)
class StoppingParams:
    """The tokens at which a sequence is complete. Stop strings are the gateway's matter."""

    max_tokens: int
    min_tokens: int = 0
    stop_token_ids: frozenset[int] = frozenset()
    """The model's end-of-sequence tokens (unless ignored) and the request's own."""


@dataclass(frozen=True, slots=True)
class Slo:
    """The latencies that the client asks for, in seconds. None: it asks for nothing."""

    ttft_s: float | None = None
    tpot_s: float | None = None

    def met(self, ttft_s: float, tpot_s: float | None, factor: float = 1.0) -> bool:
        """Returns whether these latencies are within the SLO times `factor`. `tpot_s` None: there was one token, which
        has no TPOT to miss."""
        first = self.ttft_s is None or ttft_s <= self.ttft_s * factor
        return first and (self.tpot_s is None or tpot_s is None or tpot_s <= self.tpot_s * factor)


def mean_tpot_s(decode_s: float, tokens: int) -> float | None:
    """Returns TPOT, the mean seconds for each token after the first. None: there are fewer than two tokens.

    `decode_s`: seconds from the first token to the last.
    """
    return decode_s / (tokens - 1) if tokens > 1 else None


@dataclass(frozen=True, slots=True)
class Request:
    """A request that the gateway has validated and tokenised."""

    request_id: str
    prompt: tuple[int, ...]
    sampling: SamplingParams
    stopping: StoppingParams
    samples: int = 1
    priority: int = 0
    slo: Slo = Slo()
    deadline_s: float | None = None
    """Seconds after arrival at which the client no longer waits."""
    time_limit_s: float | None = None
    """Seconds after arrival at which the answer ends as it is."""


class EndReason(Enum):
    """Why a sample is complete."""

    STOP_TOKEN = "stop token"
    STOP_STRING = "stop string"
    LENGTH = "length"
    TIME_LIMIT = "time limit"


@dataclass(frozen=True, slots=True)
class End:
    """The end of a sample. `stop_token_id`: the token that ended it, where one did."""

    reason: EndReason
    stop_token_id: int | None = None


@dataclass(frozen=True, slots=True)
class Logprob:
    """The log-probability of a token, and those of the likeliest (`top`): natural logarithms under the distribution
    before bias, penalties and temperature."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Timings:
    """The time that a sample spent in each stage, in seconds on the coordinator's clock. See semipd.v1.Timings."""

    queue_s: float
    prefill_s: float
    ttft_s: float
    decode_s: float


@dataclass(frozen=True, slots=True)
class Delta:
    """New tokens of one sample. `position` is the output position of the first, from 0."""

    index: int
    position: int
    tokens: tuple[int, ...]
    logprobs: tuple[Logprob, ...] = ()
    end: End | None = None
    timings: Timings | None = None
    """Set with `end`."""


@dataclass(frozen=True, slots=True)
class Ended:
    """The end of a request, without further tokens."""

    error: RequestError
