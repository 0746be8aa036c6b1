"""The continuous decode batch on a CPU: sequences join, grow and leave between steps, in place."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
import numpy.typing as npt
import torch

from semipd.core.config import PAGE_SIZE
from semipd.engine.attention import AttentionBackend, JoinedAttention, Pages
from semipd.engine.decoder import Decoder
from semipd.engine.prefill_inputs import (
    PrefillItem,
    PromptOutcomes,
    answers_of,
    rotation_of,
    samplers_of,
    spans_of,
    tokens_of,
    wanted_of,
)
from semipd.engine.pulse import Pulse
from semipd.engine.rope import Rotary
from semipd.engine.sampling import SequenceSampler, choose_tokens
from semipd.engine.sampling_result import SampledToken, SamplingInput, SequenceFailure, TokenOutcome, token_outcome

RowIndex = slice | npt.NDArray[np.int64]


class CpuDecodeBatch:
    """A decode batch on a CPU, made by `CpuEngine.decode_batch`.

    Each sequence has a row in several columns. The last row takes the place of a sequence that leaves.
    """

    def __init__(self, vocab_size: int, decoder: Decoder, attention: AttentionBackend, rotary: Rotary) -> None:
        self._vocab_size = vocab_size
        self._decoder = decoder
        self._attention = attention
        self._rotary = rotary
        self._left: list[int] = []
        self._held: frozenset[int] = frozenset()
        self._prompt_outcomes: list[PromptOutcomes] = []
        self._row: dict[int, int] = {}
        self._leases: list[int] = []
        self._samplers: list[SequenceSampler] = []
        self._tokens = np.zeros(16, np.int64)
        """The next token to feed."""
        self._contexts = np.zeros(16, np.int64)
        """The number of tokens in the pool, hence the position of the next one."""
        self._positions = np.zeros(16, np.int64)
        """The output position of the next token to sample."""
        self._pages = np.zeros(16, np.int64)
        """The number of pages held."""
        self._tables = np.zeros((16, 16), np.int64)
        """Page numbers. Beyond those held, each row repeats its first one."""

    def __len__(self) -> int:
        return len(self._leases)

    def leases(self) -> list[int]:
        return list(self._leases)

    def context_tokens(self) -> int:
        """Returns the number of tokens in the pool, summed over the sequences of the batch that are not held."""
        return int(self._contexts[: len(self)].sum()) - int(self._contexts[self._held_rows()].sum())

    def add(self, lease: int, context: int, table: Pages, sampling: SamplingInput) -> None:
        """Adds a sequence with `context` tokens in the pages of `table`, at least one.

        The next step feeds the last token of its output. Raises ValueError where the sequence is here already, has no
        output, or has too few pages.
        """
        if lease in self._row:
            raise ValueError(f"lease {lease} is in the batch")
        if not sampling.output or not 0 < context <= len(table) * PAGE_SIZE:
            raise ValueError(
                f"lease {lease}: {context} tokens, {len(table)} pages, {len(sampling.output)} output tokens"
            )
        row = len(self)
        self._make_room(row + 1, len(table))
        self._row[lease] = row
        self._leases.append(lease)
        self._samplers.append(
            SequenceSampler(
                sampling.params,
                sampling.stopping,
                sampling.prompt,
                sampling.output,
                self._vocab_size,
            )
        )
        self._tokens[row] = sampling.output[-1]
        self._contexts[row] = context
        self._positions[row] = len(sampling.output)
        self._pages[row] = len(table)
        self._tables[row] = table[0]
        self._tables[row, : len(table)] = table

    def remove(self, lease: int) -> None:
        """Takes a sequence out of the batch. Raises KeyError where it is not in it."""
        row, last = self._row.pop(lease), len(self) - 1
        if row != last:
            self._row[self._leases[last]] = row
            self._leases[row], self._samplers[row] = self._leases[last], self._samplers[last]
            for column in (self._tokens, self._contexts, self._positions, self._pages, self._tables):
                column[row] = column[last]
        del self._leases[last], self._samplers[last]
        self._left.append(lease)

    def hold(self, leases: Collection[int]) -> None:
        """Leaves these sequences out of the next steps, and no others. They keep their pages and their rows, and go on
        from where they are when they are no longer held. A lease that is not in the batch counts once it is added."""
        self._held = frozenset(leases)

    def _held_rows(self) -> list[int]:
        return [self._row[lease] for lease in self._held if lease in self._row] if self._held else []

    @property
    def flying(self) -> int:
        """The number of steps whose outcomes are still to come: on a CPU 0."""
        return 0

    def quiet(self) -> list[int]:
        """Returns the leases that have left since the last call and whose pages nothing computes on: on a CPU all that
        left."""
        left, self._left = self._left, []
        return left

    def drain(self, pulse: Pulse) -> list[tuple[int, TokenOutcome]]:
        """Waits for all steps and returns the outcomes still to come: on a CPU none."""
        return []

    def wanting_pages(self) -> list[int]:
        """Returns the leases whose next token has no page for its KV, except held ones. A step leaves them out."""
        count = len(self)
        full = self._contexts[:count] >= self._pages[:count] * PAGE_SIZE
        full[self._held_rows()] = False
        return [self._leases[row] for row in np.flatnonzero(full).tolist()]

    def grow(self, lease: int, pages: Sequence[int] | Pages) -> None:
        """Adds pages behind those that a sequence has. Raises KeyError where it is not in the batch."""
        row = self._row[lease]
        held = int(self._pages[row])
        self._make_room(len(self), held + len(pages))
        self._tables[row, held : held + len(pages)] = pages
        self._pages[row] += len(pages)

    def wait(self, pulse: Pulse) -> None:
        """Waits until all steps that were launched are done: on a CPU they are."""

    def prepare(self) -> None:
        """Does what can be done of the next step before the device is free: on a CPU nothing."""

    def step(
        self, pulse: Pulse, *, ahead: bool = True, prompts: Sequence[PrefillItem] = ()
    ) -> list[tuple[int, TokenOutcome]]:
        """Samples one token for each sequence that has room for it. Sequences that end or fail with it leave the batch.

        `prompts`: chunks that are computed in the same forward pass (Sarathi-Serve, arXiv 2403.02310), or alone where
        no sequence has room. `prompt_outcomes` returns what came of them. Raises ValueError, with nothing computed,
        where a prompt's lease is in the batch.

        `ahead`: the device may still have work when this returns. It makes no difference on a CPU.
        """
        for item in prompts:
            if item.lease in self._row:
                raise ValueError(f"lease {item.lease} is in the batch")
        rows = self._ready()
        contexts = self._contexts[rows]
        if not len(contexts) and not prompts:
            return []
        leases, samplers = self._leases, self._samplers
        if not isinstance(rows, slice):
            leases, samplers = [leases[row] for row in rows], [samplers[row] for row in rows]
        positions: list[int] = self._positions[rows].tolist()
        drawing, drawn_positions = samplers_of(prompts, self._vocab_size)
        everyone, everywhere = [*samplers, *drawing], [*positions, *drawn_positions]
        with torch.inference_mode():
            if prompts:
                logits = self._forward_mixed(rows, contexts, prompts, pulse)
            else:
                logits = self._forward(rows, contexts, pulse)
            choices = choose_tokens(logits, everyone, everywhere) if everyone else []
        outcomes = [
            token_outcome(c.token, at, s.stopping, c.logprob)
            for c, s, at in zip(choices, everyone, everywhere, strict=True)
        ]
        count = len(contexts)
        if prompts:
            self._prompt_outcomes.append((prompts, answers_of(prompts, outcomes[count:])))
        answers = list(zip(leases, outcomes[:count], strict=True))
        self._advance(rows, samplers, outcomes[:count])
        for lease, outcome in answers:
            if isinstance(outcome, SequenceFailure) or outcome.end is not None:
                self.remove(lease)
        return answers

    def prompt_outcomes(self) -> list[PromptOutcomes]:
        """Returns the items and outcomes of each step with prompts that became known since the last call, in order.

        The outcomes are as `CpuEngine.prefill` returns them. On a CPU they are known when the step returns.
        """
        known, self._prompt_outcomes = self._prompt_outcomes, []
        return known

    def _ready(self) -> RowIndex:
        """Returns the rows of the next step: those whose next token has a page and that are not held."""
        count = len(self)
        room = self._contexts[:count] < self._pages[:count] * PAGE_SIZE
        room[self._held_rows()] = False
        return slice(0, count) if room.all() else np.flatnonzero(room)

    def _forward(self, rows: RowIndex, contexts: npt.NDArray[np.int64], pulse: Pulse) -> torch.Tensor:
        longest = int(contexts.max())
        tables = self._tables[rows, : longest // PAGE_SIZE + 1]
        return self._decoder.forward(
            torch.from_numpy(self._tokens[rows]),
            self._rotary.at(torch.from_numpy(contexts), longest),
            self._attention.decode(tables, contexts),
            pulse,
        )

    def _forward_mixed(
        self, rows: RowIndex, contexts: npt.NDArray[np.int64], prompts: Sequence[PrefillItem], pulse: Pulse
    ) -> torch.Tensor:
        """Returns the logits of the rows, then those after each prompt that is sampled after."""
        count = len(contexts)
        tokens, wanted = tokens_of(prompts), wanted_of(prompts)
        cos, sin = rotation_of(prompts, self._rotary)
        attention = self._attention.prefill(spans_of(prompts))
        if count:
            longest = int(contexts.max())
            own_cos, own_sin = self._rotary.at(torch.from_numpy(contexts), longest)
            cos, sin = torch.cat((own_cos, cos)), torch.cat((own_sin, sin))
            tokens = np.concatenate((self._tokens[rows], tokens))
            wanted = np.concatenate((np.arange(count), wanted + count))
            tables = self._tables[rows, : longest // PAGE_SIZE + 1]
            attention = JoinedAttention(count, self._attention.decode(tables, contexts), attention)
        return self._decoder.forward(torch.from_numpy(tokens), (cos, sin), attention, pulse, torch.from_numpy(wanted))

    def _advance(self, rows: RowIndex, samplers: Sequence[SequenceSampler], outcomes: Sequence[TokenOutcome]) -> None:
        """Makes each sampled token the next to feed. A failed row gets token 0; it is about to leave."""
        tokens = [outcome.token if isinstance(outcome, SampledToken) else 0 for outcome in outcomes]
        self._tokens[rows] = tokens
        self._contexts[rows] += 1
        self._positions[rows] += 1
        for sampler, token in zip(samplers, tokens, strict=True):
            sampler.took(token)

    def _make_room(self, rows: int, pages: int) -> None:
        """Doubles the arrays that are too small. Each row of the tables keeps its padding."""
        if rows > len(self._tokens):
            self._tokens, self._contexts = _doubled(self._tokens), _doubled(self._contexts)
            self._positions, self._pages = _doubled(self._positions), _doubled(self._pages)
            self._tables = _doubled(self._tables)
        width = self._tables.shape[1]
        if pages > width:
            more = max(pages, 2 * width) - width
            self._tables = np.concatenate((self._tables, np.repeat(self._tables[:, :1], more, 1)), 1)


def _doubled(column: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    return np.concatenate((column, np.zeros_like(column)))
