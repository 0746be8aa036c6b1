"""Finds the way to use the device that brings first tokens soonest while decode keeps its TPOT target.

The ways m are a time slice of k prompt tokens between two decode steps, a split of the device with shares (x, y), and a
mixed batch of k prompt tokens in a decode step. Of these, `best_of`

    minimises    TTFT(m) = b(m) + S(m) + v · S(m) · ρ / (1 − ρ)    with ρ = λ / μ(m)
    subject to   TPOT(m) ≤ T

and where no m keeps T, it minimises TPOT(m). T is the TPOT target (`tpot_target.py`), λ the prompt tokens that arrive
a second, μ(m) those that are computed a second, S(m) the service time of a mean prompt, and b(m) the time until a pass
can begin when nobody waits. The last term is the mean wait in an M/G/1 queue (Pollaczek and Khinchine), where
v = (1 + C²) / 2 and C² is the squared coefficient of variation of service times. The latency model gives D, the time of
a decode step, P(n) of a prefill batch of n tokens, and M(k) of a mixed batch; a prefill batch has c tokens at most:

    way            TPOT(m)                       μ(m)            b(m)
    time slice k   D + ⌈k/c⌉ · P(k / ⌈k/c⌉)      k / TPOT(m)     D / 2
    split (x, y)   D under share y               c / P_x(c)      P_x(mean prompt, at most c) / 2
    mixed k        M(k)                          k / M(k)        1.5 · M(k)

S(m) is the time of a pass with the mean prompt where it fits into a batch, else its tokens / μ(m).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from semipd.core.latency import LatencyModel
from semipd.core.partition import FULL, Mode, Shares
from semipd.core.snapshot import Limits
from semipd.policies.builtin.adaptive.tuning import TUNING, Tuning


@dataclass(frozen=True, slots=True)
class ServingLoad:
    """The load that is to be served."""

    decode_rows: int
    """Sequences in the decode batch."""
    context_tokens: int
    """Tokens that all of them together attend to."""
    tpot_target_s: float
    """Seconds between two tokens of a sequence, at most: T."""
    chunk_tokens: int
    """Prompt tokens in a prefill batch, at most: c."""
    mixed_ttft_s: float = math.inf
    """Seconds to the first token of a short prompt in mixed batches, at most."""
    prompt_tokens: int = TUNING.forecast.first_prompt_tokens
    """Mean tokens of a prompt."""
    arriving_tokens_per_s: float = 0.0
    """Prompt tokens that arrive, those that wait already included: λ."""
    computed_tokens: int = 0
    """Tokens of the first prompt's context that are computed already."""
    tile_tokens: int = 1
    """Prompt tokens in a tile, of which a chunk has whole ones: a batch between two multiples costs more for each of
    its tokens. 320 take 8.7 ms, 384 take 10.0, and 448 as long as 512, 12.4 (an H200, the profile that ships)."""


DeviceUse = tuple[Shares, Mode]
"""The setting of the device. A change of it has a cost; a change of the tokens in a batch or step has none."""


class ModeCandidate(NamedTuple):
    """A way to use the device, and what the latency model expects of it."""

    shares: Shares
    mode: Mode
    tpot_s: float
    """Seconds between two tokens of a sequence."""
    prefill_tokens_per_s: float
    """Prompt tokens that are computed: μ."""
    ttft_s: float
    """Mean seconds from a prompt's arrival to its first token."""
    chunk_tokens: int
    """Prompt tokens in a batch, at most."""
    step_tokens: int | None = None
    """The same as `Plan.step_tokens`."""

    @property
    def use(self) -> DeviceUse:
        """The setting of the device."""
        return self.shares, self.mode


def mean_ttft_s(load: ServingLoad, rate: float, pass_s: float, before_s: float, tuning: Tuning = TUNING) -> float:
    """Returns the mean time to a first token if prompts are served one after another and arrive at random.

    `rate`: prompt tokens computed a second, μ. `pass_s`: time of a pass with the mean prompt, or as much of it as is in
    one batch. `before_s`: time until a pass can begin when nobody waits, b. Where more arrives than can be served the
    queue has no mean. From `tuning.saturated` on the wait goes on as the tangent, so that the way that serves more is
    still the better one.
    """
    service_s = pass_s if load.prompt_tokens <= load.chunk_tokens else load.prompt_tokens / rate
    used, limit = load.arriving_tokens_per_s / rate, tuning.saturated
    queue = used / (1 - used) if used < limit else limit / (1 - limit) + (used - limit) / (1 - limit) ** 2
    return before_s + service_s + queue * service_s * tuning.length_variation


def split_candidate(model: LatencyModel, load: ServingLoad, shares: Shares, tuning: Tuning = TUNING) -> ModeCandidate:
    """Returns what both phases do side by side under these shares, both busy."""

    def batch_s(tokens: int) -> float:
        return model.prefill_s(tokens, load.computed_tokens + tokens, share=shares.prefill, other=shares.decode)

    tpot_s = model.decode_s(load.decode_rows, load.context_tokens, share=shares.decode, other=shares.prefill)
    rate = load.chunk_tokens / batch_s(load.chunk_tokens)
    own_s = batch_s(min(load.prompt_tokens, load.chunk_tokens))
    ttft_s = mean_ttft_s(load, rate, own_s, own_s * tuning.pass_left, tuning)
    return ModeCandidate(shares, Mode.SPLIT, tpot_s, rate, ttft_s, load.chunk_tokens)


def time_slice_candidate(
    load: ServingLoad,
    tokens: int,
    step_s: float,
    own_s: float,
    batch_s: Callable[[int], float],
    tuning: Tuning = TUNING,
) -> ModeCandidate:
    """Returns what turns of `tokens` prompt tokens and one decode step do, each phase on the whole device.

    The prompt tokens go in batches of `load.chunk_tokens` at most. `step_s`: time of the decode step. `own_s`: time of
    a batch with the mean prompt alone, or as much of it as is in one batch. `batch_s` gives the time of any batch by
    its tokens.
    """
    batches = -(-tokens // load.chunk_tokens)
    mean = round(tokens / batches)
    turn_s = step_s + batches * batch_s(mean)
    rate = tokens / turn_s
    ttft_s = mean_ttft_s(load, rate, own_s, step_s * tuning.pass_left, tuning)
    whole_tiles = -(-mean // load.tile_tokens) * load.tile_tokens
    chunk = min(tokens, load.chunk_tokens, whole_tiles)
    return ModeCandidate(FULL, Mode.TURNS, turn_s, rate, ttft_s, chunk, tokens)


def mixed_candidate(model: LatencyModel, load: ServingLoad, tokens: int, tuning: Tuning = TUNING) -> ModeCandidate:
    """Returns what mixed batches of `tokens` prompt tokens and a decode step do.

    What a batch answers comes back when the step behind it has been launched, so one of three steps in a row has no
    prompt tokens. That costs prefill a tenth of the time, and decode gains by it. `tpot_s` and `prefill_tokens_per_s`
    are as if there were no such steps.
    """
    step_s = model.mixed_s(tokens, load.computed_tokens, load.decode_rows, load.context_tokens)
    ttft_s = mean_ttft_s(load, tokens / step_s, step_s, tuning.mixed_batches_before * step_s, tuning)
    return ModeCandidate(FULL, Mode.MIXED, step_s, tokens / step_s, ttft_s, tokens, tokens)


def candidates(
    model: LatencyModel, load: ServingLoad, limits: Limits, tuning: Tuning = TUNING
) -> Iterator[ModeCandidate]:
    """Yields the ways that the engine has (`limits.modes`), as far as the model knows of them and they may be the best.

    Each kind begins with what is best for one phase and goes on towards the other. Splits end with the first that keeps
    the TPOT target, for those that follow leave prefill less. Tokens in a step end with the first that does not keep
    it, for more only take longer. Mixed batches also end where a short prompt would wait longer than
    `load.mixed_ttft_s`.

    A split is for where time slices are too long for decode. Side by side a GPU should do somewhat more, and so says
    the model. But in a server, where batches are small and arrive at random, a split of 52 / 48 served 43 chat requests
    a second, and time slices 66 (`static`, one H200, benchmarks/results/h200_policies.json).

    The model of mixed batches is a GPU's: the weights are read once for both phases, and arithmetic is free until it
    takes longer than that. An engine that makes mixed batches and has no time slices is a CPU. There nothing is free,
    each chunk delays each token, and no factor that is fitted to what was observed tells of it. So there mixed batches
    are never chosen.
    """
    kept = False
    if Mode.TURNS in limits.modes:
        step_s = model.decode_s(load.decode_rows, load.context_tokens)
        batch_s = model.passes_s(load.computed_tokens)
        own_s = batch_s(min(load.prompt_tokens, load.chunk_tokens))
        for tokens in tuning.time_slice_tokens:
            candidate = time_slice_candidate(load, tokens, step_s, own_s, batch_s, tuning)
            yield candidate
            if candidate.tpot_s > load.tpot_target_s:
                break
            kept = True
    if not kept:
        for shares in limits.splits:
            candidate = split_candidate(model, load, shares, tuning)
            yield candidate
            if candidate.tpot_s <= load.tpot_target_s:
                break
    if {Mode.MIXED, Mode.TURNS} <= limits.modes:
        yield from _mixed_candidates(model, load, tuning)


def _mixed_candidates(model: LatencyModel, load: ServingLoad, tuning: Tuning) -> Iterator[ModeCandidate]:
    for tokens in tuning.mixed_tokens:
        candidate = mixed_candidate(model, load, tokens, tuning)
        if tuning.mixed_batches_to_first_token * candidate.tpot_s > load.mixed_ttft_s:
            break
        yield candidate
        if candidate.tpot_s > load.tpot_target_s:
            break


def best_of(found: Sequence[ModeCandidate], load: ServingLoad) -> ModeCandidate:
    """Returns the candidate with the soonest first tokens of those that keep the TPOT target; where none does, the one
    with the smallest TPOT.

    Under splits alone that is the smallest decode share that keeps the target.
    """
    target_s = load.tpot_target_s
    keeping = [c for c in found if c.tpot_s <= target_s]
    if keeping:
        return min(keeping, key=lambda c: c.ttft_s)
    return min(found, key=lambda c: c.tpot_s)


def presumed_use(limits: Limits, tuning: Tuning = TUNING) -> DeviceUse:
    """Returns the use of the device that is presumed before any was chosen."""
    return limits.splits[min(tuning.first_split, len(limits.splits) - 1)], Mode.SPLIT


def in_force(
    model: LatencyModel, load: ServingLoad, found: Sequence[ModeCandidate], use: DeviceUse, tuning: Tuning = TUNING
) -> ModeCandidate | None:
    """Returns what the present use of the device can do under the present load; None: its mode is no candidate."""
    shares, mode = use
    if mode is Mode.SPLIT:
        return split_candidate(model, load, shares, tuning)
    same_mode = [c for c in found if c.mode is mode]
    return max(same_mode, key=lambda c: (c.tpot_s <= load.tpot_target_s, -c.ttft_s)) if same_mode else None


@dataclass(frozen=True, slots=True)
class Hysteresis:
    """Keeps the choice from flapping. Decode gets more at once, because a token that came late can't be made up for."""

    dwell_s: float
    """Seconds for which a use of the device stays before prefill gets more."""
    gain: float
    """Part by which first tokens must come sooner, and part of the TPOT target that must be left."""

    def settle(self, present: ModeCandidate, wanted: ModeCandidate, load: ServingLoad, since_s: float) -> ModeCandidate:
        """Returns `wanted` or `present`. `present`, under the present load, has been in force for `since_s` seconds."""
        if present.tpot_s > load.tpot_target_s:
            return wanted if wanted.tpot_s < present.tpot_s else present
        leaves_room = wanted.tpot_s <= load.tpot_target_s * (1 - self.gain)
        gains = wanted.ttft_s < present.ttft_s * (1 - self.gain)
        return wanted if since_s >= self.dwell_s and leaves_room and gains else present
