"""Which split of the device, or which other mode, serves prefill best while decode keeps its pace."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from semipd.core.partition import FULL, Mode, Shares
from semipd.core.snapshot import Limits
from semipd.policies.toolkit.latency import LatencyModel

MIXED = (256, 384, 512, 768, 1024, 1536, 2048)
"""Prompt tokens in a mixed batch."""
TILE = 128
"""Tokens: a GPU's matrix products go in tiles of so many, and a batch in between costs more for each of its tokens: 320
take 8.7 ms, 384 take 10.0, and 448 as long as 512, 12.4 (the profile that ships)."""
MIXED_WAITS = 3
"""Mixed batches until a prompt's first token: the one that runs, the one that was launched behind it, and its own."""
BUSY = 0.9
"""Of what can be served: from there on a queue's mean says little."""
VARYING = 0.75
"""Half of one and the squared coefficient of variation of prompts' lengths, about."""
TURNS = (128, 256, 384, 512, 640, 768, 896, 1024, 1280, 1536, 1792, 2048, 2560, 3072, 4096)
"""Prompt tokens between two decode steps."""


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
    wait_s: float = math.inf
    """For the first token of a prompt that comes now, at most."""
    prompt: int = 512
    """Tokens of a prompt, on average."""
    arriving: float = 0.0
    """Prompt tokens a second, and what waits."""
    computed: int = 0
    """Tokens before the chunk, in its prompt."""


class Choice(NamedTuple):
    """A way to use the device, and what the model expects of it."""

    shares: Shares
    mode: Mode
    decode_s: float
    """Between two tokens of a sequence."""
    prefill_rate: float
    """Prompt tokens a second."""
    first_s: float
    """From a prompt's arrival to its first token, on average."""
    chunk: int
    """Prompt tokens in a batch, at most."""
    step_tokens: int | None = None
    """As a plan's."""


def first_token_s(load: Load, rate: float, pass_s: float, before_s: float) -> float:
    """On average, if prompts are served one after another at `rate` and each comes when it likes.

    `pass_s`: of a prompt that fits into one batch; `before_s`: until a pass can begin when nobody waits. The queue is
    M/G/1's (Pollaczek and Khinchine) for prompts of varying length; where more comes than can be served it has no
    mean, so from BUSY on the line goes on straight: who serves more is still the better one.
    """
    service = pass_s if load.prompt <= load.chunk else load.prompt / rate
    used = load.arriving / rate
    queue = used / (1 - used) if used < BUSY else BUSY / (1 - BUSY) + (used - BUSY) / (1 - BUSY) ** 2
    return before_s + service + queue * service * VARYING


def split_choice(model: LatencyModel, load: Load, shares: Shares) -> Choice:
    """Side by side under these shares, both busy."""

    def took(tokens: int) -> float:
        return model.prefill_s(tokens, load.computed + tokens, share=shares.prefill, other=shares.decode)

    pace = model.decode_s(load.rows, load.context_tokens, share=shares.decode, other=shares.prefill)
    batch_s, own_s = took(load.chunk), took(min(load.prompt, load.chunk))
    rate = load.chunk / batch_s
    return Choice(shares, Mode.SPLIT, pace, rate, first_token_s(load, rate, own_s, own_s / 2), load.chunk)


def turns_choice(load: Load, tokens: int, step_s: float, own_s: float, batch_s: Callable[[int], float]) -> Choice:
    """So many prompt tokens, in batches of `load.chunk` at most, and one decode step, each on the whole device.

    `step_s`: of the step; `own_s`: of a batch with the prompt alone, or as much of it as is in a batch; `batch_s`: of
    any batch, by its tokens.
    """
    batches = -(-tokens // load.chunk)
    mean = round(tokens / batches)
    turn = step_s + batches * batch_s(mean)
    first_s = first_token_s(load, tokens / turn, own_s, step_s / 2)
    each = -(-mean // TILE) * TILE
    return Choice(FULL, Mode.TURNS, turn, tokens / turn, first_s, min(tokens, load.chunk, each), tokens)


def mixed_choice(model: LatencyModel, load: Load, tokens: int) -> Choice:
    """So many prompt tokens in a decode step.

    What a batch answers comes back when the step behind it has been launched: so of three steps in a row one has no
    prompt. That costs prefill a tenth of the time, and decode gains by it; `decode_s` and `prefill_rate` are as if
    there were none.
    """
    took = model.mixed_s(tokens, load.computed, load.rows, load.context_tokens)
    # One runs, one has been launched behind it.
    first_s = first_token_s(load, tokens / took, took, 1.5 * took)
    return Choice(FULL, Mode.MIXED, took, tokens / took, first_s, tokens, tokens)


def choices(model: LatencyModel, load: Load, limits: Limits) -> Iterator[Choice]:
    """What the engine can do (`limits.modes`) and the model knows of, as far as it may be the best.

    Each way begins with what is best for one phase and goes on towards the other: splits until decode's pace is kept,
    for those that follow leave prefill less; prompt tokens a step until it is not, for more only take longer. Mixed
    batches also end where prompts would wait longer than `load.wait_s`.

    A split is for where turns are too long for decode. Side by side a GPU should do somewhat more, and so says the
    model; but in a server, where batches are small and come when they like, a split of 52 / 48 served 43 chat requests
    a second, and turns 66 (`static`, one H200, benchmarks/results/h200_policies.json).

    The model of mixed batches is a GPU's, where the weights are read once for both phases and arithmetic is free until
    it takes longer than that. An engine that mixes and can't take turns is a CPU: nothing is free there, each chunk
    delays each token, and no factor that is fitted to what was observed tells of it. So there it is never chosen.
    """
    kept = False
    step_s = model.decode_s(load.rows, load.context_tokens)
    if Mode.TURNS in limits.modes:
        batch_s = model.passes_s(load.computed)
        own_s = batch_s(min(load.prompt, load.chunk))
        for tokens in TURNS:
            choice = turns_choice(load, tokens, step_s, own_s, batch_s)
            yield choice
            if choice.decode_s > load.pace_s:
                break
            kept = True
    if not kept:
        for shares in limits.splits:
            choice = split_choice(model, load, shares)
            yield choice
            if choice.decode_s <= load.pace_s:
                break
    if {Mode.MIXED, Mode.TURNS} <= limits.modes:
        for tokens in MIXED:
            choice = mixed_choice(model, load, tokens)
            if MIXED_WAITS * choice.decode_s > load.wait_s:
                break
            yield choice
            if choice.decode_s > load.pace_s:
                break


def best(model: LatencyModel, load: Load, limits: Limits) -> Choice:
    """What brings first tokens soonest among what keeps decode's pace; where nothing does, what comes nearest to it.

    Under splits alone that is the smallest decode share that keeps the pace.
    """
    return preferred(list(choices(model, load, limits)), load)


def preferred(found: Sequence[Choice], load: Load) -> Choice:
    """`best` of those that were found."""
    keeping = [c for c in found if c.decode_s <= load.pace_s]
    if keeping:
        return min(keeping, key=lambda c: c.first_s)
    return min(found, key=lambda c: c.decode_s)


@dataclass(frozen=True, slots=True)
class Hysteresis:
    """Keeps a choice from flapping. More for decode is granted at once, for a pace that is lost can't be made up."""

    dwell_s: float = 0.25
    """A choice stays so long before prefill gets more."""
    gain: float = 0.03
    """By so much first tokens must come sooner, and as much must be left of decode's pace."""

    def settle(self, now: Choice, wanted: Choice, load: Load, since_s: float) -> Choice:
        """`now` is the present choice under the present load, in force for `since_s` seconds."""
        if (wanted.shares, wanted.mode) == (now.shares, now.mode):
            return wanted
        if now.decode_s > load.pace_s:
            return wanted if wanted.decode_s < now.decode_s else now
        roomy = wanted.decode_s <= load.pace_s * (1 - self.gain)
        gains = wanted.first_s < now.first_s * (1 - self.gain)
        return wanted if since_s >= self.dwell_s and roomy and gains else now
