"""Chunks of prompts on a GPU: what a command says of them, how they are rotated, what attends for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from semipd.core.config import PAGE_SIZE
from semipd.core.request import Logprob
from semipd.engine.cuda.flashinfer import FlashInferPrefill
from semipd.engine.cuda.forward import Attend, Forward, Rotation, halves
from semipd.engine.cuda.kernels import prefill_attention
from semipd.engine.cuda.launch_args import Fields
from semipd.engine.cuda.sampler import Rules, chances, columns, outcome
from semipd.engine.prefill_inputs import PrefillItem
from semipd.engine.rope import Rotary
from semipd.engine.sampling_result import Failed, Sampled

Given = Mapping[str, torch.Tensor]
"""A command's arrays on the device."""
Said = dict[str, npt.NDArray[Any]]
"""A command's arrays on the host."""

NO_ROWS = np.empty(0, np.int64)

GRAPH_PROMPTS = 64
"""Prompts in a captured pass, at most."""
GRAPH_CONTEXT = 4
"""The prompts of a captured pass attend to so many times their tokens, at most: beyond, the faster attention counts for
more than the launches do."""
FEW_TOKENS = 256
"""Fewer than these count as so many: launches would take longer than any attention."""


class Chunks:
    """For passes of at most so many tokens, prompts and pages.

    Beside `fields`, a command has "tokens", "positions" and "slots" for each token of the pass.
    """

    def __init__(
        self,
        forward: Forward,
        rotary: Rotary,
        flashinfer: FlashInferPrefill | None,
        most_tokens: int,
        most_prompts: int,
        most_pages: int,
    ) -> None:
        self._forward, self._rotary, self._flashinfer = forward, rotary, flashinfer
        blocks = most_tokens // prefill_attention.QUERY_BLOCK + most_prompts  # each prompt may end with one of its own
        self.most_tokens, self.most_prompts, self.most_pages = most_tokens, most_prompts, most_pages
        self.fields: Fields = {
            "count": ((1,), np.int32),
            "blocks": ((prefill_attention.BLOCK_FIELDS, blocks), np.int32),
            # Page numbers, prompt after prompt. To be the command's last field: it is sent as far as it is filled.
            "pages": ((most_pages,), np.int32),
        }

    # --- what the device is told ------------------------------------------------------------------------------------

    def fill(self, say: Said, items: Sequence[PrefillItem], begin: int = 0) -> tuple[int, list[int]]:
        """Their tokens lie from place `begin` of the pass on. How many page numbers there are, and the places of the
        tokens that are sampled after."""
        own_rotation = self._needs_own_rotation(items)
        first = pages = blocks = 0
        wanted = []
        for item in items:
            count, start = len(item.tokens), item.start
            mine = slice(begin + first, begin + first + count)
            at = np.arange(start, start + count)
            table = np.asarray(item.table, np.int32)[: -(-(start + count) // PAGE_SIZE)]
            say["tokens"][mine] = item.tokens
            say["positions"][mine] = np.arange(mine.start, mine.stop) if own_rotation else at
            say["slots"][mine] = table[at // PAGE_SIZE] * PAGE_SIZE + at % PAGE_SIZE
            say["pages"][pages : pages + len(table)] = table
            for offset in range(0, count, prefill_attention.QUERY_BLOCK):
                size = min(prefill_attention.QUERY_BLOCK, count - offset)
                say["blocks"][:4, blocks] = mine.start + offset, size, start + offset, pages
                blocks += 1
            pages += len(table)
            first += count
            if item.draw is not None:
                wanted.append(begin + first - 1)
        say["count"][0] = blocks
        return pages, wanted

    # --- how they are computed --------------------------------------------------------------------------------------

    def attention(self, items: Sequence[PrefillItem], given: Given, begin: int = 0) -> Attend:
        """For the items' queries, from place `begin` of the pass on and to its end."""
        if self._flashinfer is None:
            return self._triton(sum(-(-len(item.tokens) // prefill_attention.QUERY_BLOCK) for item in items), given)
        own = self._flashinfer.plan(items, given["pages"], self._forward.pool)
        if not begin:
            return own
        return lambda index, queries, out: own(index, queries[begin:], out[begin:])

    def capturable(self, items: Sequence[PrefillItem]) -> bool:
        """Whether `captured_attention`, and the common rotation, are right for them."""
        tokens = sum(len(item.tokens) for item in items)
        attended = sum(item.start + len(item.tokens) for item in items)
        few = len(items) <= GRAPH_PROMPTS and attended <= GRAPH_CONTEXT * max(tokens, FEW_TOKENS)
        return few and not self._needs_own_rotation(items)

    def captured_attention(self, tokens: int, given: Given) -> Attend:
        """The same launches for any items that are `capturable` and of so many tokens at most, wherever in the pass
        they lie."""
        return self._triton(tokens // prefill_attention.QUERY_BLOCK + min(tokens, GRAPH_PROMPTS), given)

    def _triton(self, most_blocks: int, given: Given) -> Attend:
        """At most so many blocks. Where each lies in the pass, the command says."""
        forward = self._forward
        tables = given["pages"].view(-1, 1)  # a block names the place of its prompt's first page

        def attend(index: int, queries: torch.Tensor, out: torch.Tensor) -> None:
            window = forward.model.windows[index]
            prefill_attention.attend(
                queries, forward.pool[index], tables, given["blocks"], given["count"], window, most_blocks, out
            )

        return attend

    # --- prompts that dynamic NTK rotates as a whole ----------------------------------------------------------------

    def _needs_own_rotation(self, items: Sequence[PrefillItem]) -> bool:
        return any(
            self._rotary.long_prompt(item.start, item.start + 1, item.prompt_tokens or 0) is not None for item in items
        )

    def own_rotation(self, items: Sequence[PrefillItem], contexts: npt.NDArray[np.int64] = NO_ROWS) -> Rotation | None:
        """A table with a row for each token of the pass, whose "positions" are then their places; None: the common one
        does. `contexts`: positions of tokens that come before the items', and are of no prompt."""
        if not self._needs_own_rotation(items):
            return None
        parts = [self._rotary.at(torch.from_numpy(contexts), int(contexts.max()))] if len(contexts) else []
        for item in items:
            start, end = item.start, item.start + len(item.tokens)
            own = self._rotary.long_prompt(start, end, item.prompt_tokens or 0)
            parts.append(own or self._rotary.at(torch.arange(start, end), end - 1))
        cos, sin = (torch.cat(part) for part in zip(*parts, strict=True))
        return halves((cos, sin), self._forward.pool.device)


def fill_draws(say: Said, begin: int, draws: Sequence[PrefillItem], rules: Sequence[Rules]) -> None:
    """The columns of the sampled places from `begin` on, which have no row."""
    mine = slice(begin, begin + len(draws))
    seeds, positions = np.zeros(len(draws), np.uint64), np.zeros(len(draws), np.int64)
    for at, (item, each) in enumerate(zip(draws, rules, strict=True)):
        assert item.draw is not None
        for name, value in columns(item.draw, each.history).items():
            say[name][begin + at] = value
        seeds[at], positions[at] = item.draw.sampling.seed, len(item.draw.output)
    say["rows"][begin:] = -1
    say["chance"][mine] = chances(say["temperature"][mine], seeds, positions)


def special_draws(draws: Sequence[PrefillItem], rules: Sequence[Rules], begin: int = 0) -> list[tuple[int, int, Rules]]:
    """Those of which `DeviceSampler.draw` is to be told more than their columns."""
    return [
        (begin + at, len(item.draw.output) if item.draw else 0, each)
        for at, (item, each) in enumerate(zip(draws, rules, strict=True))
        if not each.plain
    ]


def prompt_outcomes(
    items: Sequence[PrefillItem], tokens: Sequence[int], logprobs: Mapping[int, Logprob], begin: int = 0
) -> list[Sampled | Failed | None]:
    """An item with a draw is answered with its token, others with None. Theirs are the places from `begin` on."""
    answers: list[Sampled | Failed | None] = []
    place = begin
    for item in items:
        if item.draw is None:
            answers.append(None)
            continue
        position = len(item.draw.output)
        answers.append(outcome(tokens[place], position, item.draw.stopping, logprobs.get(place)))
        place += 1
    return answers
