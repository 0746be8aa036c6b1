"""What sampling a sequence needs, and what comes of it."""

from __future__ import annotations

from dataclasses import dataclass

from semipd.core.request import End, EndReason, Logprob, SamplingParams, StoppingParams
from semipd.engine.sampling import Choice, Sampler


@dataclass(frozen=True, slots=True)
class Draw:
    """All that decides a sequence's next token, besides its logits."""

    sampling: SamplingParams
    stopping: StoppingParams
    prompt: tuple[int, ...]
    """Needed where a penalty is set; may be empty else."""
    output: tuple[int, ...]
    """Sampled so far, oldest first."""


@dataclass(frozen=True, slots=True)
class Sampled:
    token: int
    position: int
    """Output position, from 0."""
    logprob: Logprob | None
    end: End | None
    """Set on a sequence's last token."""


@dataclass(frozen=True, slots=True)
class Failed:
    """This sequence alone cannot go on."""

    error: str


def settle(choice: Choice, sampler: Sampler, position: int) -> Sampled | Failed:
    """The outcome of a row, and whether its sequence ends with it."""
    token = choice.token
    if token is None:
        return Failed("the model's output is not finite")
    return Sampled(token, position, choice.logprob, end_at(token, position, sampler.stopping))


def end_at(token: int, position: int, stopping: StoppingParams) -> End | None:
    if token in stopping.stop_token_ids and position >= stopping.min_tokens:
        return End(EndReason.STOP_TOKEN, token)
    if position + 1 >= stopping.max_tokens:
        return End(EndReason.LENGTH)
    return None
