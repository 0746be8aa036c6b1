"""A simulated request from its arrival to its end, and how policies see it.

The coordinator's `Book` journals each token of each sequence, and walks over all of them to count or to list those of a
stage; an hour of traffic is tens of millions of tokens. Here a sequence in the decode batch is two numbers, the step
that it joined with and the step that it ends with, and what is shown to a policy is computed when a policy looks.
"""

from __future__ import annotations

from semipd.coordinator.requests import Stage
from semipd.core.request import Slo
from semipd.core.snapshot import Running, RunningSequence, SequenceId, WaitingSequence

NEVER = 1 << 62
"""The step that a sequence joins with that is not in the decode batch."""


class SimRequest:
    """One request of one sample. All times in seconds on the simulated clock, as the coordinator knows them."""

    __slots__ = (
        "arrival_s",
        "computed",
        "end_s",
        "first_token_s",
        "in_flight",
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
        "refused",
        "request_id",
        "seen",
        "sent_s",
        "slo",
        "stage",
    )

    def __init__(self, number: SequenceId, sent_s: float, prompt_len: int, output_len: int, slo: Slo) -> None:
        self.number = number
        self.request_id = f"r{number}"
        self.sent_s = sent_s
        """By the client."""
        self.arrival_s = sent_s
        """At the coordinator."""
        self.prompt_len = prompt_len
        self.output_len = output_len
        self.slo = slo
        self.stage: Stage | None = None
        """None: not there yet, refused, or over."""
        self.refused = ""
        self.computed = 0
        """Tokens whose KV is in the pool; in the decode batch, as of its joining."""
        self.in_flight = 0
        self.output = 0
        """Tokens sampled; in the decode batch, as of its joining."""
        self.joined = NEVER
        self.pages = 0
        """Held; in the decode batch, as of its joining."""
        self.prefill_start_s: float | None = None
        self.first_token_s: float | None = None
        self.last_token_s = 0.0
        self.end_s: float | None = None
        self.largest_gap_s = 0.0
        self.preemptions = 0
        self.seen: WaitingSequence | None = None
        """As it was shown last; None: it has changed since."""

    @property
    def to_compute(self) -> int:
        return self.prompt_len + self.output

    @property
    def last_step(self) -> int:
        """Of a sequence in the decode batch: the step with its last token."""
        return self.joined + self.output_len - self.output - 1

    def as_waiting(self) -> WaitingSequence:
        if self.seen is None:
            self.seen = WaitingSequence(
                sequence=self.number,
                request_id=self.request_id,
                arrival_s=self.arrival_s,
                prompt_tokens=self.prompt_len + self.output,
                computed_tokens=self.computed,
                in_flight_tokens=self.in_flight,
                output_tokens=self.output,
                max_tokens=self.output_len,
                priority=0,
                slo=self.slo,
                deadline_s=None,
                preemptions=self.preemptions,
            )
        return self.seen


class RunningView:
    """What stays the same of a sequence while it is ready, or while it is in the decode batch; never changed."""

    __slots__ = (
        "arrival_s",
        "first_token_s",
        "joined",
        "last_token_s",
        "max_tokens",
        "output",
        "prompt_len",
        "request_id",
        "sequence",
        "slo",
    )

    def __init__(self, life: SimRequest) -> None:
        assert life.first_token_s is not None
        self.sequence = life.number
        self.request_id = life.request_id
        self.arrival_s = life.arrival_s
        self.first_token_s = life.first_token_s
        self.last_token_s = life.last_token_s
        self.joined = life.joined
        self.output = life.output
        self.prompt_len = life.prompt_len
        self.max_tokens = life.output_len
        self.slo = life.slo

    def running(self, output_tokens: int, last_token_s: float) -> RunningSequence:
        return RunningSequence(
            self.sequence,
            self.request_id,
            self.arrival_s,
            self.first_token_s,
            last_token_s,
            self.prompt_len + output_tokens,
            output_tokens,
            self.max_tokens,
            0,
            self.slo,
        )


def running(views: tuple[RunningView, ...], done: int, told_s: float) -> Running:
    """Returns what runs, as it is now whenever somebody looks.

    `done` is the last step that was answered for, `told_s` the moment of that answer.
    """

    def shown() -> list[RunningSequence]:
        return [
            v.running(v.output + done - v.joined + 1, told_s)
            if v.joined <= done
            else v.running(v.output, v.last_token_s)
            for v in views
        ]

    return Running(len(views), shown)
