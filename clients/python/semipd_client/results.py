"""The answers of a server as frozen values. Times are in seconds."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from semipd_client._proto.semipd.v1 import generation_pb2 as pb


class FinishReason(StrEnum):
    STOP = "stop"
    """The end-of-sequence token, a stop token or a stop string."""
    LENGTH = "length"
    """`max_tokens`, or the end of the context."""
    TIME_LIMIT = "time limit"
    UNKNOWN = "unknown"
    """A reason that this client is too old to know."""


@dataclass(frozen=True, slots=True)
class Finish:
    reason: FinishReason
    stop: str | None = None
    """The stop string that ended the sample, if one did."""
    stop_token_id: int | None = None
    """The token that ended the sample, if one did."""


@dataclass(frozen=True, slots=True)
class Logprob:
    """Log-probabilities: natural logarithms under the distribution before penalties and temperature."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()
    """(token id, logprob) of the likeliest tokens, as many as `top_logprobs` asked for."""


@dataclass(frozen=True, slots=True)
class Usage:
    prompt_tokens: int
    output_tokens: int
    """Tokens of all samples together."""


@dataclass(frozen=True, slots=True)
class Timings:
    """Times that the server measured; those of the first sample if there are several."""

    queue_s: float
    """Time from arrival to the start of the first prefill chunk."""
    prefill_s: float
    """Time from there to the first token."""
    ttft_s: float
    """Time from arrival to the first token."""
    decode_s: float
    """Time from the first token to the last."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One answer to the prompt. `finish` is None while it is being streamed."""

    index: int
    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[Logprob, ...]
    finish: Finish | None


@dataclass(frozen=True, slots=True)
class Generation:
    """A whole answer. `text`, `token_ids` and `finish` are those of the first sample."""

    request_id: str
    model: str
    samples: tuple[Sample, ...]
    usage: Usage
    timings: Timings | None

    @property
    def text(self) -> str:
        return self.samples[0].text

    @property
    def token_ids(self) -> tuple[int, ...]:
        return self.samples[0].token_ids

    @property
    def finish(self) -> Finish | None:
        return self.samples[0].finish


class AbortOutcome(StrEnum):
    ABORTED = "aborted"
    """It was waiting or running and is ended now."""
    NOT_FOUND = "not found"
    """No such request is alive: it ended earlier or never was."""


_FINISH_REASONS = {
    pb.FINISH_REASON_STOP: FinishReason.STOP,
    pb.FINISH_REASON_LENGTH: FinishReason.LENGTH,
    pb.FINISH_REASON_TIME_LIMIT: FinishReason.TIME_LIMIT,
}


def finish_of(m: pb.Finish) -> Finish:
    return Finish(
        reason=_FINISH_REASONS.get(m.reason, FinishReason.UNKNOWN),
        stop=m.stop if m.HasField("stop") else None,
        stop_token_id=m.stop_token_id if m.HasField("stop_token_id") else None,
    )


def logprobs_of(messages: Iterable[pb.Logprob]) -> tuple[Logprob, ...]:
    return tuple(Logprob(m.token_id, m.logprob, tuple((t.token_id, t.logprob) for t in m.top)) for m in messages)


def usage_of(m: pb.Usage) -> Usage:
    return Usage(m.prompt_tokens, m.output_tokens)


def timings_of(m: pb.Timings) -> Timings:
    return Timings(m.queue, m.prefill, m.time_to_first_token, m.decode)


def generation_of(m: pb.GenerateResponse) -> Generation:
    samples = tuple(
        Sample(s.index, s.text, tuple(s.token_ids), logprobs_of(s.logprobs), finish_of(s.finish)) for s in m.samples
    )
    timings = timings_of(m.timings) if m.HasField("timings") else None
    return Generation(m.request_id, m.model, samples, usage_of(m.usage), timings)


def abort_outcome_of(m: pb.AbortResponse) -> AbortOutcome:
    aborted = m.outcome == pb.ABORT_OUTCOME_ABORTED
    return AbortOutcome.ABORTED if aborted else AbortOutcome.NOT_FOUND
