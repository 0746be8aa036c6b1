"""What a client asks for, validated, and what it gets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from semipd.core.errors import RequestError


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How the next token is drawn. Order of application: bias, penalties, temperature, top-k, top-p, min-p."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    """0: off."""
    min_p: float = 0.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repetition_penalty: float = 1.0
    seed: int = 0
    """Unsigned 64 bits. With the output position it alone decides each draw."""
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    logprobs: bool = False
    top_logprobs: int = 0

    @property
    def greedy(self) -> bool:
        return self.temperature == 0.0

    @property
    def penalised(self) -> bool:
        """Whether the draw depends on the tokens before it."""
        return self.frequency_penalty != 0.0 or self.presence_penalty != 0.0 or self.repetition_penalty != 1.0


@dataclass(frozen=True, slots=True)
class StoppingParams:
    """When a sequence is complete, in tokens. Stop strings are the gateway's matter."""

    max_tokens: int
    min_tokens: int = 0
    stop_token_ids: frozenset[int] = frozenset()
    """The model's end-of-sequence tokens (unless ignored) and the request's own."""


@dataclass(frozen=True, slots=True)
class Slo:
    """What the client wants to see, in seconds; None: no wish."""

    ttft_s: float | None = None
    tpot_s: float | None = None


@dataclass(frozen=True, slots=True)
class Request:
    """A request that passed the door: validated and tokenised."""

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
    reason: EndReason
    stop_token_id: int | None = None


@dataclass(frozen=True, slots=True)
class Logprob:
    """Natural logarithms under the distribution before bias, penalties and temperature."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Timings:
    """Seconds, on the coordinator's clock. See semipd.v1.Timings."""

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
    """A request is over without further tokens."""

    error: RequestError
