"""The measurements of `semipd profile`, the most telling first, so that a recording can be cut short.

The tables name each size once. A size that is not `quick` is left out of a quick recording.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import NamedTuple, TypeVar

from semipd.core.sms import decode_choices

MOST_TOKENS = 560_000
"""Tokens of a decode batch, context and all, at most: what fits beside two copies of the weights of Llama-3-8B in
139 GiB."""


# --- measurements -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class StepAlone:
    """A decode step of `rows` sequences at `context` tokens each, on `sms` SMs, with prefill idle."""

    sms: int
    rows: int
    context: int


@dataclass(frozen=True, slots=True)
class PassAlone:
    """A prefill pass over `tokens` tokens of one prompt after `start` others, on `sms` SMs, with decode idle."""

    sms: int
    tokens: int
    start: int


@dataclass(frozen=True, slots=True)
class Beside:
    """Both phases without a pause: decode on the first `decode_sms` SMs, prefill on the last `prefill_sms`."""

    decode_sms: int
    prefill_sms: int
    rows: int
    context: int
    tokens: int


@dataclass(frozen=True, slots=True)
class MixedPass:
    """A decode step that takes along `tokens` tokens of a prompt after `start` others, with prefill idle."""

    sms: int
    rows: int
    context: int
    tokens: int
    start: int


@dataclass(frozen=True, slots=True)
class Alternating:
    """One decode step and one prefill pass over a prompt by turns, without a pause, on the whole device."""

    rows: int
    context: int
    tokens: int


Measurement = StepAlone | PassAlone | Beside | MixedPass | Alternating


# --- sizes ------------------------------------------------------------------------------------------------------------


class StepSize(NamedTuple):
    """The size of a decode step."""

    rows: int
    context: int
    quick: bool = True

    def fits(self, max_context: int) -> bool:
        return self.context <= max_context and self.rows * self.context <= MOST_TOKENS


class PassSize(NamedTuple):
    """The size of a prefill pass over one prompt."""

    tokens: int
    start: int = 0
    quick: bool = True

    def fits(self, max_context: int) -> bool:
        return self.tokens + self.start <= max_context


class PairSize(NamedTuple):
    """The sizes of a decode step and of a prefill pass that the device does side by side or by turns."""

    rows: int
    context: int
    tokens: int
    quick: bool = True

    def fits(self, max_context: int) -> bool:
        return max(self.context, self.tokens) <= max_context


class MixedSize(NamedTuple):
    """The size of a mixed batch."""

    rows: int
    context: int
    tokens: int
    start: int = 0
    quick: bool = True

    def fits(self, max_context: int) -> bool:
        return max(self.context, self.tokens) <= max_context and (not self.start or max_context >= LONG_CONTEXT)


LONG_CONTEXT = 4096
"""Tokens of context that a model must have for mixed batches that go on with a long prompt."""

STEPS = (
    StepSize(64, 1024),
    StepSize(64, 4096),
    StepSize(1, 512),
    StepSize(16, 1024),
    StepSize(128, 1024),
    StepSize(256, 512),
    StepSize(512, 256),
    StepSize(32, 1024, quick=False),
    StepSize(96, 1024, quick=False),
    StepSize(192, 512, quick=False),
    StepSize(8, 4096, quick=False),
    StepSize(128, 4096, quick=False),
    StepSize(384, 512, quick=False),
    StepSize(256, 2048, quick=False),
    StepSize(16, 256, quick=False),
    StepSize(320, 512, quick=False),
    StepSize(448, 512, quick=False),
)
"""Decode steps alone on all SMs: the price of rows at about one context, then that of context."""
REFERENCE_STEPS = 4
"""The first steps: without them there is no profile, and fewer SMs are measured with them."""

PASSES = (
    PassSize(2048),
    PassSize(256),
    PassSize(512),
    PassSize(1024),
    PassSize(512, start=3584),
    PassSize(64),
    PassSize(4096),
    PassSize(7680),
    PassSize(128, quick=False),
    PassSize(384, quick=False),
    PassSize(768, quick=False),
    PassSize(1536, quick=False),
    PassSize(3072, quick=False),
    PassSize(1024, start=3072, quick=False),
    PassSize(2048, start=5120, quick=False),
    PassSize(128, start=1024, quick=False),
    PassSize(320, quick=False),
    PassSize(448, quick=False),
    PassSize(640, quick=False),
)
"""Prefill passes alone on all SMs: whole prompts, and chunks after a part that was computed before."""
REFERENCE_PASSES = 5
"""The first passes: without them there is no profile."""
PASSES_ON_FEWER_SMS = (PassSize(2048), PassSize(256))

PAIRS_BESIDE = (
    PairSize(64, 1024, 2048),
    PairSize(128, 1024, 512),
    PairSize(256, 512, 512, quick=False),
    PairSize(64, 4096, 1024, quick=False),
    PairSize(16, 1024, 256, quick=False),
)
"""Steps and passes side by side, on each split of the device."""

PAIRS_BY_TURNS = (
    PairSize(256, 512, 512),
    PairSize(64, 1024, 512),
    PairSize(256, 512, 1024),
    PairSize(16, 1024, 1024, quick=False),
    PairSize(384, 512, 512, quick=False),
    PairSize(256, 512, 256, quick=False),
    PairSize(128, 512, 512, quick=False),
)
"""Steps and passes by turns: as where a server that takes turns is near saturation, then small batches."""
MOST_TURN_TOKENS = max(size.tokens for size in PAIRS_BY_TURNS)

MIXED_SIZES = (
    MixedSize(64, 512, 512),
    MixedSize(64, 512, 2048),
    MixedSize(256, 512, 512),
    MixedSize(16, 512, 512),
    MixedSize(256, 512, 2048),
    MixedSize(64, 512, 1024),
    MixedSize(64, 512, 256, quick=False),
    MixedSize(16, 512, 1024, quick=False),
    MixedSize(256, 512, 1024, quick=False),
    MixedSize(16, 512, 256, quick=False),
    MixedSize(256, 512, 256, quick=False),
    MixedSize(16, 512, 2048, quick=False),
    MixedSize(64, 512, 64, quick=False),
    MixedSize(64, 4096, 512, quick=False),
    MixedSize(128, 2048, 1024, quick=False),
    MixedSize(64, 512, 512, start=3584, quick=False),
    MixedSize(64, 512, 1024, start=3072, quick=False),
)
"""Mixed batches on all SMs: small and large in both parts, then long contexts of either."""

Size = TypeVar("Size", StepSize, PassSize, PairSize, MixedSize)


# --- the schedule -----------------------------------------------------------------------------------------------------


def schedule(sms: int, max_context: int, *, quick: bool) -> list[Measurement]:
    """Returns the measurements for a GPU of `sms` SMs and a model of this context, the most telling first.

    What a profile can't do without comes before all else, fewer SMs alone come last. In between each kind has its turn.
    """

    def chosen(sizes: Iterable[Size]) -> list[Size]:
        return [size for size in sizes if size.fits(max_context) and (size.quick or not quick)]

    steps, passes = chosen(STEPS), chosen(PASSES)
    reference = [*_steps(sms, steps[:REFERENCE_STEPS]), *_passes(sms, passes[:REFERENCE_PASSES])]
    rest = [*_steps(sms, steps[REFERENCE_STEPS:]), *_passes(sms, passes[REFERENCE_PASSES:])]
    beside = [Beside(*pair, *size[:3]) for size in chosen(PAIRS_BESIDE) for pair in _pairs_of_shares(sms, quick=quick)]
    mixed = [MixedPass(sms, *size[:4]) for size in chosen(MIXED_SIZES)]
    by_turns = [Alternating(*size[:3]) for size in chosen(PAIRS_BY_TURNS)]
    on_fewer = steps[: 1 if quick else REFERENCE_STEPS]
    splits = _splits(sms)
    fewer = [m for size in PASSES_ON_FEWER_SMS if size in passes for _, p in splits for m in _passes(p, [size])]
    fewer_steps = [m for size in on_fewer for d, _ in splits for m in _steps(d, [size])]
    return [*reference, *_interleaved(beside, rest, mixed, by_turns), *fewer, *fewer_steps]


def _steps(sms: int, sizes: Iterable[StepSize]) -> list[Measurement]:
    return [StepAlone(sms, size.rows, size.context) for size in sizes]


def _passes(sms: int, sizes: Iterable[PassSize]) -> list[Measurement]:
    return [PassAlone(sms, size.tokens, size.start) for size in sizes]


def _splits(sms: int) -> list[tuple[int, int]]:
    """Returns the SMs of decode and of prefill in each split without overlap."""
    return [(decode, sms - decode) for decode in decode_choices(sms) if decode < sms]


def _pairs_of_shares(sms: int, *, quick: bool) -> list[tuple[int, int]]:
    """Returns the SMs of decode and of prefill that both are measured on side by side: every second split, the others,
    all SMs for both, and in a whole recording all for decode beside about half for prefill."""
    splits = _splits(sms)
    pairs = [*splits[1::2], *splits[::2], (sms, sms)]
    if splits and not quick:
        pairs.append((sms, splits[len(splits) // 2][1]))
    return list(dict.fromkeys(pairs))


def _interleaved(*kinds: Sequence[Measurement]) -> list[Measurement]:
    return [each for one_of_each in zip_longest(*kinds) for each in one_of_each if each is not None]
