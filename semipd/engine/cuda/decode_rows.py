"""The rows of a decode step on a GPU: their launch arguments, their input tokens and their attention."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from semipd.engine.cuda.block_tables import BlockTables
from semipd.engine.cuda.forward import AttendFunction, ForwardPass
from semipd.engine.cuda.kernels import decode_attention, feeding
from semipd.engine.cuda.launch_args import ArgFields
from semipd.engine.cuda.sampler import SAMPLING_COLUMNS, SamplingRules, columns, sample_points
from semipd.engine.sampling_result import SamplingInput


class DecodeRow:
    """A sequence in the batch. `slot`: its row in the block tables."""

    __slots__ = ("gone", "last_step", "lease", "place", "rules", "sampling", "slot")

    def __init__(self, lease: int, slot: int, sampling: SamplingInput, rules: SamplingRules) -> None:
        self.lease, self.slot, self.sampling, self.rules = lease, slot, sampling, rules
        self.place = 0
        self.gone = False
        self.last_step = 0
        """The number of the last step that it is part of."""

    def values(self, context: int, pages: int) -> dict[str, float]:
        """Returns the row's value in each of `row_columns`, as it joins with `context` tokens in `pages` pages."""
        return {
            "slot": self.slot,
            "context": context,
            "position": len(self.sampling.output),
            "pages": pages,
            "left": self.sampling.stopping.max_tokens - len(self.sampling.output),
            "seed": self.sampling.params.seed,
            **columns(self.sampling, self.rules.history),
        }


def row_columns(most_rows: int) -> dict[str, npt.NDArray[Any]]:
    """Returns the columns of a decode batch, with a place for each row.

    "context": tokens in the pool; "position": the output position of the next token; "pages": pages held; "left":
    tokens still to be sampled.
    """
    return {
        "slot": np.zeros(most_rows, np.int32),
        "context": np.zeros(most_rows, np.int64),
        "position": np.zeros(most_rows, np.int64),
        "pages": np.zeros(most_rows, np.int64),
        "left": np.zeros(most_rows, np.int64),
        "seed": np.zeros(most_rows, np.uint64),
        **{name: np.zeros(most_rows, kind) for name, kind in SAMPLING_COLUMNS.items() if name != "point"},
    }


class DecodeRows:
    """The rows of steps.

    Beside `fields`, the launch arguments have "rows" and SAMPLING_COLUMNS for each sampled place.
    """

    def __init__(self, forward: ForwardPass, tables: BlockTables, most_rows: int, programs: int) -> None:
        model = forward.model
        self._forward, self._tables, self._programs = forward, tables, programs
        self._windows = sorted(set(model.windows), key=lambda w: w or 0)
        self._scratch = decode_attention.DecodeScratch(
            most_rows, model.heads, model.kv_heads, model.head_dim, programs, forward.pool.device
        )
        kinds, items = len(self._windows), self._scratch.items
        self.fields: ArgFields = {
            "contexts": ((most_rows,), np.int32),
            "counts": ((kinds, 1), np.int32),
            "begins": ((kinds, most_rows + 1), np.int32),
            "items": ((kinds, decode_attention.ITEM_FIELDS, items), np.int32),
            "alone": ((kinds, items), np.int32),
        }

    def fill(
        self,
        host: dict[str, npt.NDArray[Any]],
        columns: Mapping[str, npt.NDArray[Any]],
        places: npt.NDArray[np.intp],
    ) -> None:
        """Fills in the rows at these places of the batch's `columns`, and padding behind them."""
        count = len(places)
        contexts = columns["context"][places]
        host["rows"][:count] = columns["slot"][places]
        host["rows"][count:] = -1
        host["contexts"][:count] = contexts
        host["contexts"][count:] = 0
        for name in SAMPLING_COLUMNS:
            if name != "point":
                host[name][:count] = columns[name][places]
        host["point"][:count] = sample_points(
            host["temperature"][:count], columns["seed"][places], columns["position"][places]
        )
        if count:
            for kind, window in enumerate(self._windows):
                self._cut(host, kind, contexts, window)
        else:
            self.fill_padding(host)

    def fill_padding(self, host: dict[str, npt.NDArray[Any]]) -> None:
        """Fills in padding only, for which nothing is read or written."""
        host["rows"][:] = -1
        for name in ("contexts", "counts", "begins"):
            host[name][:] = 0

    def _cut(
        self, host: dict[str, npt.NDArray[Any]], kind: int, contexts: npt.NDArray[np.int64], window: int | None
    ) -> None:
        items, begins = decode_attention.cut(contexts, window, self._forward.model.kv_heads, self._programs)
        number = items.shape[1]
        host["counts"][kind] = number
        host["items"][kind, :, :number] = items
        host["alone"][kind, :number] = np.diff(begins)[items[0]] == 1
        host["begins"][kind, : len(begins)] = begins
        host["begins"][kind, len(begins) :] = begins[-1]

    def feed(
        self, args: Mapping[str, torch.Tensor], tokens: torch.Tensor, slots: torch.Tensor, *, pad: bool = True
    ) -> None:
        """Launches what fills in each row's token, and where in the pool its keys and values go: [places] int32 each.

        Not `pad`: places without a row are left as they are.
        """
        places = len(tokens)
        rows, contexts = args["rows"][:places], args["contexts"][:places]
        feeding.feed(rows, contexts, self._tables.fed, self._tables.pages, tokens, slots, pad=pad)

    def attention(self, args: Mapping[str, torch.Tensor], places: int) -> AttendFunction:
        rows = args["rows"][:places]
        windows, pool = self._forward.model.windows, self._forward.pool
        kinds = {window: kind for kind, window in enumerate(self._windows)}

        def attend(index: int, queries: torch.Tensor, out: torch.Tensor) -> None:
            kind = kinds[windows[index]]
            cuts = args["items"][kind], args["counts"][kind], args["alone"][kind], args["begins"][kind]
            decode_attention.attend(queries, pool[index], self._tables.pages, rows, cuts, self._scratch, out)

        return attend
