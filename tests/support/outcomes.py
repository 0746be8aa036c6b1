"""Reads the outcome of a forward pass where a test knows its kind."""

from __future__ import annotations

from semipd.core.request import End, Logprob
from semipd.engine.engine import SampledToken, TokenOutcome


def sampled(outcome: TokenOutcome | None) -> SampledToken:
    """Returns the outcome, which must be a token."""
    assert isinstance(outcome, SampledToken), outcome
    return outcome


def end_of(outcome: TokenOutcome | None) -> End:
    """Returns how the sequence ended with this token; it must be the last one."""
    end = sampled(outcome).end
    assert end is not None
    return end


def logprob_of(outcome: TokenOutcome | None) -> Logprob:
    """Returns the token's log probability, which must have been asked for."""
    logprob = sampled(outcome).logprob
    assert logprob is not None
    return logprob
