"""A simulated request, its sequences, and how policies see them.

The coordinator's `RequestTable` journals each token of each sequence, and walks over all of them to count or to list
those of a stage; an hour of traffic is tens of millions of tokens. Here a sequence in the decode batch is two numbers:
the step that it joined with and the step that it ends with. What is shown to a policy is computed when a policy looks.
"""

from __future__ import annotations

from semipd.coordinator.requests import Stage
from semipd.core.request import Slo, mean_tpot_s
from semipd.core.snapshot import Running, RunningSequence, SequenceId, WaitingSequence

NEVER = 1 << 62
"""Stands for the step that a sequence joined with while it is not in the decode batch."""


class SimRequest:
    """A request from its arrival to its end.

    All times are seconds on the simulated clock, as the coordinator knows them. A request has one sequence for each of
    its samples; their numbers begin with `first`, and rise with arrival over all requests.
    """

    __slots__ = (
        "arrival_s",
        "cancel_after_s",
        "deadline_after_s",
        "index",
        "output_len",
        "priority",
        "prompt_len",
        "reason",
        "refused",
        "request_id",
        "sent_s",
        "sequences",
        "slo",
        "stopped_s",
        "why",
    )

    def __init__(
        self,
        index: int,
        sent_s: float,
        prompt_len: int,
        output_len: int,
        slo: Slo,
        *,
        first: SequenceId,
        samples: int = 1,
    ) -> None:
        self.index = index
        """Counts from 0 in the order of arrival."""
        self.request_id = f"r{index}"
        self.sent_s = sent_s
        """The moment at which the client sends it."""
        self.arrival_s = sent_s
        """The moment at which it is at the coordinator."""
        self.prompt_len = prompt_len
        self.output_len = output_len
        """Tokens of each sample."""
        self.slo = slo
        self.priority = 0
        self.deadline_after_s: float | None = None
        """Seconds after its arrival at which the server ends it; None: it has no deadline."""
        self.cancel_after_s: float | None = None
        """Seconds after it was sent at which the client leaves; None: it stays to the end."""
        self.sequences = [SimSequence(self, first + index, index) for index in range(samples)]
        self.refused = False
        self.reason = ""
        """The `semipd.core.errors.Reason` for which it was refused, or ended before it was complete. Empty: neither."""
        self.why = ""
        """The policy's own reason, where it refused the request."""
        self.stopped_s: float | None = None
        """The moment at which it was ended before it was complete; None: it was not."""

    @property
    def deadline_s(self) -> float | None:
        """The moment of its deadline; None: it has none."""
        return None if self.deadline_after_s is None else self.arrival_s + self.deadline_after_s

    @property
    def end_s(self) -> float | None:
        """The moment at which the last of its samples was complete; None: they are not all complete."""
        ends = [s.end_s for s in self.sequences if s.end_s is not None]
        return max(ends) if len(ends) == len(self.sequences) else None

    @property
    def over(self) -> bool:
        """Tells whether it is complete, refused, or was ended."""
        return self.refused or self.stopped_s is not None or self.end_s is not None


class SimSequence:
    """One sample of a request."""

    __slots__ = (
        "computed",
        "end_s",
        "first_token_s",
        "in_flight",
        "index",
        "joined",
        "largest_gap_s",
        "last_token_s",
        "number",
        "output",
        "output_len",
        "pages",
        "preemptions",
        "prefill_start_s",
        "prompt_len",
        "request",
        "seen",
        "stage",
    )

    def __init__(self, request: SimRequest, number: SequenceId, index: int) -> None:
        self.request = request
        self.number = number
        self.index = index
        """The number of the sample within the request, from 0."""
        self.prompt_len = request.prompt_len
        self.output_len = request.output_len
        self.stage: Stage | None = None
        """None: it has not arrived, was refused, or is over."""
        self.computed = 0
        """Tokens whose KV is in the pool; in the decode batch, the number at its joining."""
        self.in_flight = 0
        """Tokens in a batch that was given to a worker and is not answered."""
        self.output = 0
        """Tokens sampled; in the decode batch, the number at its joining."""
        self.joined = NEVER
        """The first decode step that it took part in since it joined the batch."""
        self.pages = 0
        """Pages that it holds; in the decode batch, the number at its joining."""
        self.prefill_start_s: float | None = None
        self.first_token_s: float | None = None
        self.last_token_s = 0.0
        self.end_s: float | None = None
        """The moment at which it was complete; None: it is not."""
        self.largest_gap_s = 0.0
        """The longest time between two of its tokens so far, without those of the steps since it joined the batch."""
        self.preemptions = 0
        self.seen: WaitingSequence | None = None
        """The last value that policies were shown of it; None: it has changed since."""

    @property
    def to_compute(self) -> int:
        """Tokens whose KV must be there before the next token can be sampled."""
        return self.prompt_len + self.output

    @property
    def last_step(self) -> int:
        """The step with its last token, of a sequence in the decode batch."""
        return self.joined + self.output_len - self.output - 1

    def output_by(self, done: int) -> int:
        """Returns the tokens sampled when step `done` was the last decode step that was answered for."""
        return self.output + max(0, done - self.joined + 1) if self.stage is Stage.DECODING else self.output

    @property
    def rank(self) -> tuple[int, SequenceId]:
        """The order of importance, as the server has it: the highest priority first, then the earliest arrival. The
        maximum gives its pages back first."""
        return -self.request.priority, self.number

    @property
    def ttft_s(self) -> float | None:
        """Seconds from the arrival of the request to the first token; None: there is none."""
        return None if self.first_token_s is None else self.first_token_s - self.request.arrival_s

    @property
    def tpot_s(self) -> float | None:
        """Mean seconds for each token after the first; None: there are fewer than two tokens."""
        return None if self.first_token_s is None else mean_tpot_s(self.last_token_s - self.first_token_s, self.output)

    def as_waiting(self) -> WaitingSequence:
        """Returns what a policy sees of it while it waits."""
        if self.seen is None:
            request = self.request
            self.seen = WaitingSequence(
                sequence=self.number,
                request_id=request.request_id,
                arrival_s=request.arrival_s,
                prompt_tokens=self.prompt_len + self.output,
                computed_tokens=self.computed,
                in_flight_tokens=self.in_flight,
                output_tokens=self.output,
                max_tokens=self.output_len,
                priority=request.priority,
                slo=request.slo,
                deadline_s=request.deadline_s,
                preemptions=self.preemptions,
            )
        return self.seen


class RunningView:
    """The fields of a sequence that stay the same while it is ready, or while it is in the decode batch.

    A view is never changed: a snapshot that was taken with it can be looked at at any later time.
    """

    __slots__ = (
        "arrival_s",
        "first_token_s",
        "joined",
        "last_token_s",
        "max_tokens",
        "output",
        "priority",
        "prompt_len",
        "request_id",
        "sequence",
        "slo",
        "source",
    )

    def __init__(self, source: SimSequence) -> None:
        assert source.first_token_s is not None
        request = source.request
        self.source = source
        self.sequence = source.number
        self.request_id = request.request_id
        self.arrival_s = request.arrival_s
        self.first_token_s = source.first_token_s
        self.last_token_s = source.last_token_s
        self.joined = source.joined
        self.output = source.output
        self.prompt_len = source.prompt_len
        self.max_tokens = source.output_len
        self.priority = request.priority
        self.slo = request.slo

    def as_running(self, output_tokens: int, last_token_s: float) -> RunningSequence:
        """Returns what a policy sees of it when it had that many tokens, the last of them at that moment."""
        return RunningSequence(
            self.sequence,
            self.request_id,
            self.arrival_s,
            self.first_token_s,
            last_token_s,
            self.prompt_len + output_tokens,
            output_tokens,
            self.max_tokens,
            self.priority,
            self.slo,
        )


def running(views: tuple[RunningView, ...], done: int, told_s: float) -> Running:
    """Returns what runs, as it is now whenever somebody looks.

    `done` is the last step that was answered for, `told_s` the moment of that answer.
    """

    def shown() -> list[RunningSequence]:
        return [
            v.as_running(v.output + done - v.joined + 1, told_s)
            if v.joined <= done
            else v.as_running(v.output, v.last_token_s)
            for v in views
        ]

    return Running(len(views), shown)
