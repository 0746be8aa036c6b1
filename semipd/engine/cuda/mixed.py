"""Steps with prompts inside: the batch's rows and chunks of prompts in one forward pass (Sarathi-Serve,
arXiv 2403.02310).

The rows come first, then the chunks, token after token. All products are over both; attention is the decode kernel for
the rows and prefill's for the chunks, into one buffer. Launched kernel by kernel: a pass of so many tokens takes the
device longer than its launches take the CPU, which is one step ahead.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from semipd.core.config import PAGE_SIZE
from semipd.engine.cuda.chunks import Chunks, fill_draws, special_draws
from semipd.engine.cuda.command import Command
from semipd.engine.cuda.drawing import COLUMNS, Drawer, Drawn, Rules
from semipd.engine.cuda.forward import Attend, Fed, Forward, Rotation
from semipd.engine.cuda.rows import Rows
from semipd.engine.cuda.tables import Tables
from semipd.engine.prompts import PrefillItem

WARM_TOKENS = 2048

Special = list[tuple[int, int, Rules]]


class MixedSteps:
    """Shares the buffers of the batch that it is of: its passes are steps of the batch, in the same order."""

    def __init__(
        self,
        forward: Forward,
        rotation: Rotation,
        rows: Rows,
        chunks: Chunks,
        tables: Tables,
        drawer: Drawer,
        most_rows: int,
    ) -> None:
        self._forward, self._rotation, self._rows, self._chunks = forward, rotation, rows, chunks
        self._tables, self._drawer = tables, drawer
        tokens, places = most_rows + chunks.most_tokens, most_rows + chunks.most_prompts
        self._command = Command(
            {
                "rows": ((places,), np.int32),
                **{name: ((places,), kind) for name, kind in COLUMNS.items()},
                **rows.fields,
                "wanted": ((places,), np.int32),
                "tokens": ((tokens,), np.int32),
                "positions": ((tokens,), np.int32),
                "slots": ((tokens,), np.int32),
                **chunks.fields,
            },
            forward.pool.device,
        )

    def check(self, prompts: Sequence[PrefillItem]) -> None:
        """Raises ValueError where a step has no room for so many."""
        tokens = sum(len(item.tokens) for item in prompts)
        pages = sum(-(-(item.start + len(item.tokens)) // PAGE_SIZE) for item in prompts)
        chunks = self._chunks
        for count, most, what in (
            (tokens, chunks.most_tokens, "tokens of prompts"),
            (len(prompts), chunks.most_prompts, "prompts"),
            (pages, chunks.most_pages, "pages of prompts"),
        ):
            if count > most:
                raise ValueError(f"a step of {count} {what}, at most {most} fit")

    def launch(
        self,
        columns: Mapping[str, npt.NDArray[Any]],
        places: npt.NDArray[np.intp],
        special: Special,
        prompts: Sequence[PrefillItem],
    ) -> tuple[Drawn | None, list[Rules]]:
        """On the current stream. `places`: of the batch's `columns`; `special`: as `Drawer.draw` is told of them.

        What is drawn is for the rows and then for the prompts with a draw, whose rules are the second answer. None:
        there is neither.
        """
        draws = [item for item in prompts if item.draw is not None]
        rules = [self._rules(item) for item in draws]
        count = len(places)
        rotation = self._chunks.own_rotation(prompts, columns["context"][places])
        pages = self._fill(columns, places, prompts, draws, rules, own_rotation=rotation is not None)
        self._command.send(pages)
        drawn = self._run(
            prompts, count, len(draws), rotation or self._rotation, [*special, *special_draws(draws, rules, count)]
        )
        for each in rules:
            self._drawer.forget(each.history)  # the next pass comes after this one on the device
        return drawn, rules

    def warm(self) -> None:
        """Compiles and loads what is launched. Touches no sequence; reads page 0, and writes nowhere."""
        tokens = min(self._chunks.most_tokens, WARM_TOKENS)
        nobody = PrefillItem(0, [0] * tokens, 0, np.zeros(-(-tokens // PAGE_SIZE), np.int32))
        say = self._command.next()
        pages, _ = self._chunks.fill(say, [nobody], 1)
        self._rows.fill_nothing(say)
        for name in ("tokens", "positions", "wanted", *COLUMNS):
            say[name][:] = 0
        say["slots"][:] = -1
        say["history"][:] = -1
        self._command.send(pages)
        self._run([nobody], 1, 1, self._rotation, [])

    # --- what the device is told ------------------------------------------------------------------------------------

    def _fill(
        self,
        columns: Mapping[str, npt.NDArray[Any]],
        places: npt.NDArray[np.intp],
        prompts: Sequence[PrefillItem],
        draws: Sequence[PrefillItem],
        rules: Sequence[Rules],
        *,
        own_rotation: bool,
    ) -> int:
        """How many page numbers the prompts have."""
        say, count = self._command.next(), len(places)
        self._rows.fill(say, columns, places)
        # The rows' tokens and slots are on the device alone: `Rows.feed` puts them there.
        say["tokens"][:count] = 0
        say["slots"][:count] = -1
        say["positions"][:count] = np.arange(count) if own_rotation else columns["context"][places]
        pages, lasts = self._chunks.fill(say, prompts, count)
        say["wanted"][:] = 0
        say["wanted"][:count] = np.arange(count)
        say["wanted"][count : count + len(lasts)] = lasts
        fill_draws(say, count, draws, rules)
        return pages

    def _rules(self, item: PrefillItem) -> Rules:
        assert item.draw is not None
        model, device = self._forward.model, self._forward.pool.device
        return Rules(item.draw, model.vocab_size, device, self._drawer.remember(item.draw))

    # --- how it is computed -----------------------------------------------------------------------------------------

    def _run(
        self, prompts: Sequence[PrefillItem], rows: int, draws: int, rotation: Rotation, special: Special
    ) -> Drawn | None:
        given = self._command.device
        end = rows + sum(len(item.tokens) for item in prompts)
        if rows:
            self._rows.feed(given, given["tokens"][:rows], given["slots"][:rows])
        fed = Fed(given["tokens"][:end], given["positions"][:end], given["slots"][:end])
        drawn = rows + draws
        # One row is computed where nothing is sampled: the last layer has nothing else to do with the others.
        wanted = given["wanted"][: max(1, drawn)]
        logits = self._forward.run(fed, rotation, self._attention(prompts, rows), wanted)
        if not drawn:
            return None
        return self._drawer.draw(logits, given["rows"][:drawn], given, special, self._tables.fed)

    def _attention(self, prompts: Sequence[PrefillItem], rows: int) -> Attend:
        chunks = self._chunks.attention(prompts, self._command.device)
        if not rows:
            return chunks
        own = self._rows.attention(self._command.device, rows)

        def attend(index: int, queries: torch.Tensor, out: torch.Tensor) -> None:
            own(index, queries[:rows], out[:rows])
            chunks(index, queries[rows:], out[rows:])

        return attend
