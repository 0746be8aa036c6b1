"""Gathers what has arrived of a stream so far."""

from __future__ import annotations

from collections.abc import Sequence

from semipd_client._proto.semipd.v1 import generation_pb2 as pb
from semipd_client.errors import ErrorDetails, Internal
from semipd_client.events import Accepted, Event, Finished, Summary, Token, event_of
from semipd_client.results import Finish, Generation, Logprob, Sample, Timings, Usage


class _PartialSample:
    """A sample, as far as it has arrived."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.token_ids: list[int] = []
        self.logprobs: list[Logprob] = []
        self.finish: Finish | None = None


class PartialAnswer:
    """The answer as far as the stream was read. What has not arrived is empty or None."""

    def __init__(self) -> None:
        self._accepted: Accepted | None = None
        self._samples: dict[int, _PartialSample] = {}
        self._summary: Summary | None = None
        self._next_sequence = 0

    @property
    def request_id(self) -> str:
        """Id of the request, for `abort`. Empty before the request is accepted."""
        return self._accepted.request_id if self._accepted else ""

    @property
    def model(self) -> str:
        return self._accepted.model if self._accepted else ""

    @property
    def prompt_tokens(self) -> int | None:
        return self._accepted.prompt_tokens if self._accepted else None

    @property
    def samples(self) -> Sequence[Sample]:
        """The samples, ordered by index."""
        return tuple(
            Sample(index, "".join(s.texts), tuple(s.token_ids), tuple(s.logprobs), s.finish)
            for index, s in sorted(self._samples.items())
        )

    @property
    def text(self) -> str:
        """Text of the first sample, so far."""
        return "".join(self._samples[0].texts) if 0 in self._samples else ""

    @property
    def token_ids(self) -> tuple[int, ...]:
        """Tokens of the first sample, so far."""
        return tuple(self._samples[0].token_ids) if 0 in self._samples else ()

    @property
    def finish(self) -> Finish | None:
        """The end of the first sample; None before it is complete."""
        return self._samples[0].finish if 0 in self._samples else None

    @property
    def usage(self) -> Usage | None:
        """Tokens of prompt and answer; None before the end."""
        return self._summary.usage if self._summary else None

    @property
    def timings(self) -> Timings | None:
        """Times in the server; None before the end, or with `timings=False`."""
        return self._summary.timings if self._summary else None

    def _take(self, m: pb.GenerateStreamResponse) -> Event | None:
        """Takes the next event. Raises Internal if one is missing."""
        if m.sequence != self._next_sequence:
            raise stream_broken(f"event {self._next_sequence} of the stream is missing; {m.sequence} came in its place")
        self._next_sequence += 1
        event = event_of(m)
        match event:
            case Accepted():
                self._accepted = event
            case Token(index, text, token_ids, logprobs):
                sample = self._samples.setdefault(index, _PartialSample())
                sample.texts.append(text)
                sample.token_ids.extend(token_ids)
                sample.logprobs.extend(logprobs)
            case Finished(index, finish):
                self._samples.setdefault(index, _PartialSample()).finish = finish
            case Summary():
                self._summary = event
        return event

    def _whole(self) -> Generation:
        """Returns the whole answer. Raises Internal if the stream ended before its summary."""
        if self._summary is None:
            raise stream_broken("the stream ended before its summary")
        return Generation(self.request_id, self.model, tuple(self.samples), self._summary.usage, self._summary.timings)


def stream_broken(why: str) -> Internal:
    return Internal(why, details=ErrorDetails(reason="STREAM_BROKEN"))
