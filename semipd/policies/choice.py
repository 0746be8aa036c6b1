"""Which split of the device, or which other mode, serves prefill best while decode keeps its pace."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from semipd.core.partition import FULL, Mode, Shares
from semipd.core.snapshot import Limits
from semipd.policies.latency import LatencyModel, split

DECODE_SMS = (16, 32, 48, 64, 80, 96)
SPLITS = (*(split(sms) for sms in DECODE_SMS), FULL)
"""Of an H200's 132 SMs, the one that leaves prefill most first. A back end rounds them to what it has."""
CHUNKS = (256, 384, 512, 768, 1024, 1536, 2048)
"""Prompt tokens in a batch where both phases take part in one rhythm (turns and mixed batches)."""


@dataclass(frozen=True, slots=True)
class Load:
    """What is to be served."""

    rows: int
    """Sequences in the decode batch."""
    context_tokens: int
    """Of all rows together."""
    pace_s: float
    """Seconds between two tokens of a sequence, at most."""
    chunk: int
    """Prompt tokens in a prefill batch under a split."""
    computed: int = 0
    """Tokens before the chunk, in its prompt."""


@dataclass(frozen=True, slots=True)
class Choice:
    """A way to use the device, and what the model expects of it."""

    shares: Shares
    mode: Mode
    decode_s: float
    """Between two tokens of a sequence."""
    prefill_rate: float
    """Prompt tokens a second."""
    chunk: int
    """Prompt tokens in a batch, at most."""


def split_choice(model: LatencyModel, load: Load, shares: Shares) -> Choice:
    """Side by side under these shares, both busy."""
    took = model.prefill_s(load.chunk, load.computed + load.chunk, share=shares.prefill, other=shares.decode)
    pace = model.decode_s(load.rows, load.context_tokens, share=shares.decode, other=shares.prefill)
    return Choice(shares, Mode.SPLIT, pace, load.chunk / took, load.chunk)


def choices(model: LatencyModel, load: Load, limits: Limits) -> Iterator[Choice]:
    """What the engine can do (`limits.modes`) and the model knows of, as far as it may be the best.

    Each way begins with what is best for one phase and goes on towards the other: splits until decode's pace is kept,
    for those that follow leave prefill less; chunks until it is not, for larger ones only take longer.

    The model of mixed batches is a GPU's, where the weights are read once for both phases and arithmetic is free until
    it takes longer than that. An engine that mixes and can't take turns is a CPU: nothing is free there, each chunk
    delays each token, and no factor that is fitted to what was observed tells of it. So there it is never chosen.
    """
    for shares in SPLITS:
        choice = split_choice(model, load, shares)
        yield choice
        if choice.decode_s <= load.pace_s:
            break
    chunks = [c for c in CHUNKS if c <= limits.max_batch_tokens] or [limits.max_batch_tokens]
    if Mode.TURNS in limits.modes:
        step = model.decode_s(load.rows, load.context_tokens)
        for chunk in chunks:
            turn = step + model.prefill_s(chunk, load.computed + chunk)
            yield Choice(FULL, Mode.TURNS, turn, chunk / turn, chunk)
            if turn > load.pace_s:
                break
    if {Mode.MIXED, Mode.TURNS} <= limits.modes:
        for chunk in chunks:
            took = model.mixed_s(chunk, load.computed, load.rows, load.context_tokens)
            yield Choice(FULL, Mode.MIXED, took, chunk / took, chunk)
            if took > load.pace_s:
                break


def best(model: LatencyModel, load: Load, limits: Limits) -> Choice:
    """The most for prefill among what keeps decode's pace; where nothing does, what comes nearest to it.

    Under splits alone that is the smallest decode share that keeps the pace.
    """
    return preferred(list(choices(model, load, limits)), load)


def preferred(found: Sequence[Choice], load: Load) -> Choice:
    """`best` of those that were found."""
    keeping = [c for c in found if c.decode_s <= load.pace_s]
    if keeping:
        return max(keeping, key=lambda c: c.prefill_rate)
    return min(found, key=lambda c: c.decode_s)


@dataclass(frozen=True, slots=True)
class Hysteresis:
    """Keeps a choice from flapping. More for decode is granted at once, for a pace that is lost can't be made up."""

    dwell_s: float = 0.25
    """A choice stays so long before prefill gets more."""
    gain: float = 0.03
    """By so much prefill must gain, and as much must be left of decode's pace."""

    def settle(self, now: Choice, wanted: Choice, load: Load, since_s: float) -> Choice:
        """`now` is the present choice under the present load, in force for `since_s` seconds."""
        if (wanted.shares, wanted.mode) == (now.shares, now.mode):
            return wanted
        if now.decode_s > load.pace_s:
            return wanted if wanted.decode_s < now.decode_s else now
        roomy = wanted.decode_s <= load.pace_s * (1 - self.gain)
        gains = wanted.prefill_rate > now.prefill_rate * (1 + self.gain)
        return wanted if since_s >= self.dwell_s and roomy and gains else now
