"""A stream's events: accepted, token..., finished (one a sample), summary."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from semipd_client._proto.semipd.v1 import generation_pb2 as pb
from semipd_client.results import Finish, Logprob, Timings, Usage, finish_of, logprobs_of, timings_of, usage_of


@dataclass(frozen=True, slots=True)
class Accepted:
    """The server has accepted the request: from here on it ends in exactly one way."""

    request_id: str
    model: str
    prompt_tokens: int


@dataclass(frozen=True, slots=True)
class Token:
    """The new tokens of one sample: one or, for a slow reader, several. `text` may be empty."""

    index: int
    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[Logprob, ...]


@dataclass(frozen=True, slots=True)
class Finished:
    """The sample is complete."""

    index: int
    finish: Finish


@dataclass(frozen=True, slots=True)
class Summary:
    """All samples are complete. This is the last event."""

    usage: Usage
    timings: Timings | None


Event: TypeAlias = Accepted | Token | Finished | Summary


def event_of(m: pb.GenerateStreamResponse) -> Event | None:
    """Reads an event. None: this client is too old to know it."""
    match m.WhichOneof("event"):
        case "accepted":
            return Accepted(m.accepted.request_id, m.accepted.model, m.accepted.prompt_tokens)
        case "token":
            t = m.token
            return Token(t.index, t.text, tuple(t.token_ids), logprobs_of(t.logprobs))
        case "finished":
            return Finished(m.finished.index, finish_of(m.finished.finish))
        case "summary":
            timings = timings_of(m.summary.timings) if m.summary.HasField("timings") else None
            return Summary(usage_of(m.summary.usage), timings)
        case _:
            return None
