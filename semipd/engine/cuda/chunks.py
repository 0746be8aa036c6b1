"""Chunks of prompts on a GPU: their launch arguments, their rotation and their attention."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from semipd.core.config import GRAPH_CONTEXT, GRAPH_FEW_TOKENS, PAGE_SIZE, pages_for
from semipd.core.request import Logprob
from semipd.engine.cuda.flashinfer import FlashInferPrefill
from semipd.engine.cuda.forward import AttendFunction, ForwardPass, Rotation, halves
from semipd.engine.cuda.kernels import prefill_attention
from semipd.engine.cuda.launch_args import ArgFields
from semipd.engine.cuda.sampler import SamplingRules, columns, sample_points
from semipd.engine.prefill_inputs import PrefillItem
from semipd.engine.rope import Rotary
from semipd.engine.sampling_result import TokenOutcome, token_outcome

DeviceArgs = Mapping[str, torch.Tensor]
"""The launch arguments on the device."""
HostArgs = dict[str, npt.NDArray[Any]]
"""The launch arguments on the host."""

NO_ROWS = np.empty(0, np.int64)

GRAPH_PROMPTS = 64
"""The most prompts in a captured pass."""


class PrefillChunks:
    """The chunks of passes; `most_tokens`, `most_prompts` and `most_pages` limit a pass.

    Beside `fields`, the launch arguments have "tokens", "positions" and "slots" for each token of the pass.
    """

    def __init__(
        self,
        forward: ForwardPass,
        rotary: Rotary,
        flashinfer: FlashInferPrefill | None,
        most_tokens: int,
        most_prompts: int,
        most_pages: int,
    ) -> None:
        self._forward, self._rotary, self._flashinfer = forward, rotary, flashinfer
        blocks = most_tokens // prefill_attention.QUERY_BLOCK + most_prompts  # each prompt may end with one of its own
        self.most_tokens, self.most_prompts, self.most_pages = most_tokens, most_prompts, most_pages
        self.fields: ArgFields = {
            "count": ((1,), np.int32),
            "blocks": ((prefill_attention.BLOCK_FIELDS, blocks), np.int32),
            # Page numbers, prompt after prompt. This must be the last field: it is sent as far as it is filled.
            "pages": ((most_pages,), np.int32),
        }

    # --- launch arguments ------------------------------------------------------------------------------------

    def fill(self, host: HostArgs, items: Sequence[PrefillItem], begin: int = 0) -> tuple[int, list[int]]:
        """Fills in the items, whose tokens lie from place `begin` of the pass on.

        Returns how many page numbers there are, and the places of the tokens that are sampled after.
        """
        own_rotation = self._needs_own_rotation(items)
        first = pages = blocks = 0
        wanted = []
        for item in items:
            count, start = len(item.tokens), item.start
            mine = slice(begin + first, begin + first + count)
            at = np.arange(start, start + count)
            table = np.asarray(item.table, np.int32)[: pages_for(start + count)]
            host["tokens"][mine] = item.tokens
            host["positions"][mine] = np.arange(mine.start, mine.stop) if own_rotation else at
            host["slots"][mine] = table[at // PAGE_SIZE] * PAGE_SIZE + at % PAGE_SIZE
            host["pages"][pages : pages + len(table)] = table
            for offset in range(0, count, prefill_attention.QUERY_BLOCK):
                size = min(prefill_attention.QUERY_BLOCK, count - offset)
                host["blocks"][:4, blocks] = mine.start + offset, size, start + offset, pages
                blocks += 1
            pages += len(table)
            first += count
            if item.sampling is not None:
                wanted.append(begin + first - 1)
        host["count"][0] = blocks
        return pages, wanted

    # --- attention --------------------------------------------------------------------------------------

    def attention(self, items: Sequence[PrefillItem], args: DeviceArgs, begin: int = 0) -> AttendFunction:
        """Returns the attention of the items' queries, which lie from place `begin` to the end of the pass."""
        if self._flashinfer is None:
            return self._triton(sum(-(-len(item.tokens) // prefill_attention.QUERY_BLOCK) for item in items), args)
        own = self._flashinfer.plan(items, args["pages"], self._forward.pool)
        if not begin:
            return own
        return lambda index, queries, out: own(index, queries[begin:], out[begin:])

    def capturable(self, items: Sequence[PrefillItem]) -> bool:
        """Returns whether `captured_attention` and the common rotation are right for the items."""
        tokens = sum(len(item.tokens) for item in items)
        attended = sum(item.start + len(item.tokens) for item in items)
        few = len(items) <= GRAPH_PROMPTS and attended <= GRAPH_CONTEXT * max(tokens, GRAPH_FEW_TOKENS)
        return few and not self._needs_own_rotation(items)

    def captured_attention(self, tokens: int, args: DeviceArgs) -> AttendFunction:
        """Returns attention that makes the same launches for any items that are `capturable`.

        The items have at most `tokens` tokens, and may lie anywhere in the pass.
        """
        return self._triton(tokens // prefill_attention.QUERY_BLOCK + min(tokens, GRAPH_PROMPTS), args)

    def _triton(self, most_blocks: int, args: DeviceArgs) -> AttendFunction:
        """Returns attention of `most_blocks` blocks at most. The launch arguments say where each lies in the pass."""
        forward = self._forward
        tables = args["pages"].view(-1, 1)  # a block names the place of its prompt's first page

        def attend(index: int, queries: torch.Tensor, out: torch.Tensor) -> None:
            window = forward.model.windows[index]
            prefill_attention.attend(
                queries, forward.pool[index], tables, args["blocks"], args["count"], window, most_blocks, out
            )

        return attend

    # --- prompts that dynamic NTK rotates as a whole ----------------------------------------------------------------

    def _needs_own_rotation(self, items: Sequence[PrefillItem]) -> bool:
        return any(
            self._rotary.long_prompt(item.start, item.start + 1, item.prompt_tokens or 0) is not None for item in items
        )

    def own_rotation(self, items: Sequence[PrefillItem], contexts: npt.NDArray[np.int64] = NO_ROWS) -> Rotation | None:
        """Returns a rotation table with a row for each token of the pass; None: the common table serves.

        The "positions" of the tokens are then their places. `contexts`: positions of tokens that come before those of
        the items, and belong to no prompt.
        """
        if not self._needs_own_rotation(items):
            return None
        parts = [self._rotary.at(torch.from_numpy(contexts), int(contexts.max()))] if len(contexts) else []
        for item in items:
            start, end = item.start, item.start + len(item.tokens)
            own = self._rotary.long_prompt(start, end, item.prompt_tokens or 0)
            parts.append(own or self._rotary.at(torch.arange(start, end), end - 1))
        cos, sin = (torch.cat(part) for part in zip(*parts, strict=True))
        return halves((cos, sin), self._forward.pool.device)


def fill_sampling_columns(
    host: HostArgs, begin: int, sampled_items: Sequence[PrefillItem], rules: Sequence[SamplingRules]
) -> None:
    """Fills in the sampling columns of the places from `begin` on, which have no row."""
    mine = slice(begin, begin + len(sampled_items))
    seeds, positions = np.zeros(len(sampled_items), np.uint64), np.zeros(len(sampled_items), np.int64)
    for at, (item, each) in enumerate(zip(sampled_items, rules, strict=True)):
        assert item.sampling is not None
        for name, value in columns(item.sampling, each.history).items():
            host[name][begin + at] = value
        seeds[at], positions[at] = item.sampling.params.seed, len(item.sampling.output)
    host["rows"][begin:] = -1
    host["point"][mine] = sample_points(host["temperature"][mine], seeds, positions)


def special_places(
    sampled_items: Sequence[PrefillItem], rules: Sequence[SamplingRules], begin: int = 0
) -> list[tuple[int, int, SamplingRules]]:
    """Returns the places of which `DeviceSampler.sample` needs more than their columns."""
    return [
        (begin + at, len(item.sampling.output) if item.sampling else 0, each)
        for at, (item, each) in enumerate(zip(sampled_items, rules, strict=True))
        if not each.plain
    ]


def prompt_outcomes(
    items: Sequence[PrefillItem], tokens: Sequence[int | None], logprobs: Mapping[int, Logprob], begin: int = 0
) -> list[TokenOutcome | None]:
    """Returns an outcome for each item that is sampled after, and None for the others.

    Their tokens are at the places from `begin` on.
    """
    answers: list[TokenOutcome | None] = []
    place = begin
    for item in items:
        if item.sampling is None:
            answers.append(None)
            continue
        position = len(item.sampling.output)
        answers.append(token_outcome(tokens[place], position, item.sampling.stopping, logprobs.get(place)))
        place += 1
    return answers
