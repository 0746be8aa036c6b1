"""The input of sampling a sequence, and its outcome."""

from __future__ import annotations

from dataclasses import dataclass

from semipd.core.request import End, EndReason, Logprob, SamplingParams, StoppingParams


@dataclass(frozen=True, slots=True)
class SamplingInput:
    """All that decides a sequence's next token besides its logits."""

    params: SamplingParams
    stopping: StoppingParams
    prompt: tuple[int, ...]
    """The prompt's tokens, which penalties need. May be empty where no penalty is set."""
    output: tuple[int, ...]
    """Tokens sampled so far, oldest first."""


@dataclass(frozen=True, slots=True)
class SampledToken:
    """A token that was sampled for a sequence."""

    token: int
    position: int
    """Output position, from 0."""
    logprob: Logprob | None
    end: End | None
    """Set on a sequence's last token."""


@dataclass(frozen=True, slots=True)
class SequenceFailure:
    """This sequence alone cannot go on."""

    error: str


TokenOutcome = SampledToken | SequenceFailure
"""The outcome of one forward pass for a sequence that is sampled after it."""


def token_outcome(token: int | None, position: int, stopping: StoppingParams, logprob: Logprob | None) -> TokenOutcome:
    """Returns the outcome of a row, and with it whether its sequence ends.

    `token`: what was sampled; None: nothing can be sampled from the row's logits. `position`: the token's own output
    position, from 0.
    """
    if token is None:
        return SequenceFailure("the model's output is not finite")
    return SampledToken(token, position, logprob, end_at(token, position, stopping))


def end_at(token: int, position: int, stopping: StoppingParams) -> End | None:
    if token in stopping.stop_token_ids and position >= stopping.min_tokens:
        return End(EndReason.STOP_TOKEN, token)
    if position + 1 >= stopping.max_tokens:
        return End(EndReason.LENGTH)
    return None
