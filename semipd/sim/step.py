"""A decode step in simulated time, and what it takes along of prefill batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from semipd.core.chunking import split_chunks
from semipd.core.config import MIXED_PROMPTS
from semipd.sim.device import DevicePass, SimBatch
from semipd.sim.request import SimSequence


@dataclass(slots=True)
class SimLoad:
    """The part of a prefill batch that one decode step takes along."""

    batch: SimBatch
    tokens: int
    """Prompt tokens."""
    pairs: float
    """Pairs of one of these and a token that it attends to."""
    last: bool = False
    """Tells whether the batch is computed with it."""


class SimStep:
    """A decode step that was launched."""

    __slots__ = (
        "beside_s",
        "context_tokens",
        "dropped",
        "enders",
        "in_turns",
        "joiners",
        "leavers",
        "load",
        "number",
        "own_turn",
        "rows",
        "run",
    )

    def __init__(self, number: int, rows: int, context_tokens: int, run: DevicePass, load: SimLoad | None) -> None:
        self.number = number
        """Counts the steps with rows. A step without rows has the number of the last one that had some."""
        self.rows = rows
        self.load = load
        self.beside_s = 0.0
        """Seconds that the host adds."""
        self.context_tokens = context_tokens
        """Tokens attended to, over its rows."""
        self.run = run
        self.joiners: list[SimSequence] = []
        """Sequences whose first step it is since they came into the batch."""
        self.enders: list[SimSequence] = []
        """Sequences whose last step it is."""
        self.leavers: list[SimSequence] = []
        """Sequences that are held back after it."""
        self.dropped: list[SimSequence] = []
        """Sequences that left while it was on the device: what it made of them is thrown away."""
        self.own_turn = False
        """Tells whether it alternates with passes."""
        self.in_turns = False
        """Tells whether nothing of decode's was on the device when it was launched, as where the phases take time
        slices."""


def loads_of(batch: SimBatch, most_tokens: int) -> list[SimLoad]:
    """Returns what each of the next steps takes along of a batch, with at most that many tokens each."""
    most = min(batch.step_tokens or most_tokens, most_tokens)
    chunks = [(sequence.computed, tokens) for sequence, tokens in batch.chunks]
    loads = [SimLoad(batch, *sizes) for sizes in step_sizes(chunks, most)]
    loads[-1].last = True
    return loads


def step_sizes(chunks: Sequence[tuple[int, int]], most_tokens: int) -> Iterator[tuple[int, float]]:
    """Yields, for each decode step that takes a part of a batch along, its prompt tokens and its attention pairs.

    `chunks`: for each chunk, the tokens computed before it and its own tokens. A pair is a token and one that it
    attends to.
    """
    for pieces in split_chunks([count for _, count in chunks], most_tokens, MIXED_PROMPTS):
        pairs = sum(tokens * (chunks[index][0] + start + tokens / 2) for index, start, tokens in pieces)
        yield sum(tokens for _, _, tokens in pieces), pairs
