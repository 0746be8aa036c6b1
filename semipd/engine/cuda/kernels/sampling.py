"""Samples a token for each row in one launch: the likeliest, or a draw after top-k, top-p and min-p.

The rules are those of `semipd.engine.sampling`: the filters are thresholds on the logits, ties included, and a draw is
the inverse of the cumulative distribution in the order of token ids. A threshold is found by narrowing the range of the
logits' bit patterns, which have the same order as the numbers: three bits a pass, so six passes for 16-bit logits.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

NOT_FINITE = -1
"""Stands in the place of a token where none can be drawn from the row's logits."""
PASS_BITS = 3


@triton.jit
def _number(key):
    """Returns the float32 at place `key` (int64) in the order of all float32: its bit pattern, reversed for
    negatives."""
    bits = key.to(tl.int32)
    return tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits).to(tl.float32, bitcast=True)


@triton.jit
def _mass(logits, best, inverse, least, vocab: tl.constexpr, block: tl.constexpr):
    """Returns the probability of all tokens whose logit is at least `least`, in units of the likeliest token's."""
    found = 0.0
    for start in range(0, vocab, block):
        at = start + tl.arange(0, block)
        value = tl.load(logits + at, mask=at < vocab, other=-float("inf")).to(tl.float32)
        found += tl.sum(tl.where((value >= least) & (at < vocab), tl.math.exp((value - best) * inverse), 0.0), 0)
    return found


@triton.jit
def _narrow(
    logits, wanted, best, inverse, least, count_them: tl.constexpr, bits: tl.constexpr, pass_bits: tl.constexpr,
    vocab: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    """Returns the greatest threshold at or above which there is `wanted`.

    `wanted` is a number of tokens (`count_them`), or a probability of tokens at or above `least`. The threshold lies on
    a grid of 2 ** (32 - bits) bit patterns, which is finer than numbers of `bits` significant bits are.
    """
    passes: tl.constexpr = (bits + pass_bits - 1) // pass_bits
    fan: tl.constexpr = 1 << pass_bits
    grid: tl.constexpr = 32 - bits
    low = (tl.full([], -2139095041, tl.int64) >> grid) << grid  # minus infinity or a little below: all is above it
    step = tl.full([], 1 << 32, tl.int64)
    nth = tl.arange(0, fan)
    for _ in range(passes):
        step = tl.maximum(step // fan, 1)
        keys = low + nth.to(tl.int64) * step
        limits = _number(tl.maximum(tl.minimum(keys, 0x7F800000), -2139095041))
        found = tl.zeros([fan], tl.float32)
        for start in range(0, vocab, block):
            at = start + tl.arange(0, block)
            value = tl.load(logits + at, mask=at < vocab, other=-float("inf")).to(tl.float32)
            if count_them:
                chance = tl.where(at < vocab, 1.0, 0.0)
            else:
                chance = tl.where((value >= least) & (at < vocab), tl.math.exp((value - best) * inverse), 0.0)
            found += tl.sum(tl.where(value[None, :] >= limits[:, None], chance[None, :], 0.0), 1)
        enough = (nth == 0) | ((found >= wanted) & (keys < 0x7F800000))
        above = tl.sum(tl.where(enough, 1, 0), 0)
        low += (above - 1).to(tl.int64) * step
    return _number(tl.maximum(low, -2139095041))


@triton.jit
def _sample(
    logits, rows, temperatures, top_ks, top_ps, min_ps, chances, tokens, fed,
    vocab: tl.constexpr, block: tl.constexpr, narrow_block: tl.constexpr, bits: tl.constexpr, pass_bits: tl.constexpr,
):  # fmt: skip
    place = tl.program_id(0)
    logits += place.to(tl.int64) * vocab
    best = -float("inf")
    token = 0
    broken = 0
    for start in range(0, vocab, block):
        at = start + tl.arange(0, block)
        value = tl.load(logits + at, mask=at < vocab, other=-float("inf")).to(tl.float32)
        broken += tl.sum(tl.where(value != value, 1, 0), 0)
        high = tl.max(value, 0)
        first = tl.min(tl.where(value == high, at, vocab), 0)
        token = tl.where(high > best, first, token)
        best = tl.maximum(best, high)
    fine = (broken == 0) & (best < float("inf")) & (best > -float("inf"))
    temperature = tl.load(temperatures + place)
    if fine & (temperature > 0.0):
        inverse = 1.0 / temperature
        least = -float("inf")
        top_k = tl.load(top_ks + place)
        top_p = tl.load(top_ps + place)
        min_p = tl.load(min_ps + place)
        if (top_k > 0) & (top_k < vocab):
            least = _narrow(
                logits, top_k.to(tl.float32), best, inverse, least, True, bits, pass_bits, vocab, narrow_block
            )
        if top_p < 1.0:
            # A token is kept if there is less than top_p above it, so the one that crosses top_p is the last.
            wanted = top_p * _mass(logits, best, inverse, least, vocab, narrow_block)
            nucleus = _narrow(logits, wanted, best, inverse, least, False, bits, pass_bits, vocab, narrow_block)
            least = tl.maximum(least, nucleus)
        if min_p > 0.0:
            least = tl.maximum(least, best + tl.math.log(min_p) * temperature)
        target = tl.load(chances + place) * _mass(logits, best, inverse, least, vocab, block)
        passed = 0.0
        found = vocab
        last = token
        for start in range(0, vocab, block):
            if found == vocab:
                at = start + tl.arange(0, block)
                value = tl.load(logits + at, mask=at < vocab, other=-float("inf")).to(tl.float32)
                chance = tl.where((value >= least) & (at < vocab), tl.math.exp((value - best) * inverse), 0.0)
                here = tl.sum(chance, 0)
                last = tl.maximum(tl.where(start == 0, 0, last), tl.max(tl.where(chance > 0.0, at, 0), 0))
                if passed + here > target:
                    cumulative = passed + tl.cumsum(chance, 0)
                    found = tl.min(tl.where((cumulative > target) & (chance > 0.0), at, vocab), 0)
                passed += here
        token = tl.where(found < vocab, found, last)
    row = tl.load(rows + place)
    tl.store(tokens + place, tl.where(fine, token, -1))
    if row >= 0:
        tl.store(fed + row, tl.where(fine, token, 0))


def sample(
    logits: torch.Tensor,
    rows: torch.Tensor,
    temperatures: torch.Tensor,
    top_ks: torch.Tensor,
    top_ps: torch.Tensor,
    min_ps: torch.Tensor,
    chances: torch.Tensor,
    tokens: torch.Tensor,
    fed: torch.Tensor,
) -> None:
    """Fills `tokens` [places] int32 with a token a place or NOT_FINITE, and `fed[rows[place]]` where rows is not -1.

    logits [places, vocab]; temperatures float32, 0: the likeliest token; top_ks int32, 0: off; top_ps, min_ps and
    chances (each in [0, 1): the point of the distribution at which to draw) float32.
    """
    places, vocab = logits.shape
    bits = 32 if logits.dtype == torch.float32 else (16 if logits.dtype == torch.bfloat16 else 19)
    _sample[(places,)](
        logits, rows, temperatures, top_ks, top_ps, min_ps, chances, tokens, fed,
        vocab, min(8192, triton.next_power_of_2(vocab)), min(2048, triton.next_power_of_2(vocab)), bits, PASS_BITS,
        num_warps=16,
    )  # fmt: skip


SEEN_IN_PROMPT = 1 << 30
"""The bit of a history's word that says that the token is in the prompt. The bits below count it in the output."""


@triton.jit
def _penalise(
    logits, out, histories, slots, repetition, frequency, presence, vocab: tl.constexpr, block: tl.constexpr,
    in_prompt: tl.constexpr,
):  # fmt: skip
    place = tl.program_id(0)
    at = tl.program_id(1) * block + tl.arange(0, block)
    inside = at < vocab
    where = place.to(tl.int64) * vocab + at
    value = tl.load(logits + where, mask=inside, other=0.0).to(tl.float32)
    slot = tl.load(slots + place).to(tl.int64)
    if slot >= 0:
        word = tl.load(histories + slot * vocab + at, mask=inside, other=0)
        count = (word & (in_prompt - 1)).to(tl.float32)
        factor = tl.load(repetition + place)
        value = tl.where(word != 0, tl.where(value > 0.0, value / factor, value * factor), value)
        value -= count * tl.load(frequency + place)
        value -= tl.where(count > 0.0, tl.load(presence + place), 0.0)
    tl.store(out + where, value, mask=inside)


def penalise(
    logits: torch.Tensor,
    histories: torch.Tensor,
    slots: torch.Tensor,
    repetition: torch.Tensor,
    frequency: torch.Tensor,
    presence: torch.Tensor,
    out: torch.Tensor,
) -> None:
    """Applies penalties to logits [places, vocab], into out, float32.

    `histories` [slots, vocab] int32; slots [places]: -1 copies a row without change.
    """
    places, vocab = logits.shape
    block = 2048
    _penalise[(places, triton.cdiv(vocab, block))](
        logits, out, histories, slots, repetition, frequency, presence, vocab, block, SEEN_IN_PROMPT, num_warps=4
    )


@triton.jit
def _count(histories, slots, tokens, vocab: tl.constexpr):
    place = tl.program_id(0)
    slot = tl.load(slots + place).to(tl.int64)
    token = tl.load(tokens + place)
    if (slot >= 0) & (token >= 0):
        where = histories + slot * vocab + token
        tl.store(where, tl.load(where) + 1)


def count(histories: torch.Tensor, slots: torch.Tensor, tokens: torch.Tensor) -> None:
    """Adds each place's token to its history."""
    _count[(len(slots),)](histories, slots, tokens, histories.shape[1], num_warps=1)
