"""The continuous decode batch on a GPU: one step is launched while the one before it is on the device.

What a step needs from the CPU (who is in it, lengths, new pages, where to draw) does not depend on the tokens of the
step before, which stay on the device; so the CPU works on the next step while the GPU works on this one. The price: a
sequence that ends with a stop token is found out one step later, and that step's token of it is thrown away.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from semipd.core.config import PAGE_SIZE
from semipd.engine.attention import Pages
from semipd.engine.cuda.command import Command
from semipd.engine.cuda.drawing import COLUMNS, Drawer, Drawn, Rules, chances, columns
from semipd.engine.cuda.forward import Fed, Forward, Rotation
from semipd.engine.cuda.graphs import Graphs
from semipd.engine.cuda.kernels import decode_attention, feeding
from semipd.engine.cuda.kernels.sampling import NOT_FINITE
from semipd.engine.cuda.lanes import Lanes
from semipd.engine.cuda.tables import Tables
from semipd.engine.cuda.waiting import wait_for
from semipd.engine.decoder import Pulse
from semipd.engine.outcome import Draw, Failed, Sampled, end_at

BUCKETS = (1, 2, 4, 8, 12, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384, 448, 512)
"""Rows of a captured step. Further apart where a step costs more than the rows that pad it."""
SLOTS = 3
"""As many for each row of the batch: those that have left keep theirs while a step on the device knows of them, and
there are two steps at most."""


def buckets_for(most_rows: int) -> list[int]:
    inside = [bucket for bucket in BUCKETS if bucket < most_rows]
    top = BUCKETS[-1]
    beyond = list(range(top + 128, most_rows, 128)) if most_rows > top else []
    return [*inside, *beyond, most_rows]


class Row:
    """A sequence in the batch. `slot`: its row in the tables on the device."""

    __slots__ = ("draw", "gone", "last_step", "lease", "place", "rules", "slot")

    def __init__(self, lease: int, slot: int, draw: Draw, rules: Rules) -> None:
        self.lease, self.slot, self.draw, self.rules = lease, slot, draw, rules
        self.place = 0
        self.gone = False
        self.last_step = 0
        """The last step that it is part of."""


@dataclass(slots=True)
class Step:
    number: int
    rows: list[Row]
    positions: list[int]
    drawn: Drawn
    done: torch.cuda.Event


class CudaDecodeBatch:
    """Like `semipd.engine.batch.DecodeBatch`, but `step` answers for the step before, and see `quiet`."""

    def __init__(self, forward: Forward, rotation: Rotation, lanes: Lanes, most_rows: int, most_context: int) -> None:
        model, device = forward.model, forward.pool.device
        self._forward, self._rotation, self._lanes = forward, rotation, lanes
        self._most_rows = most_rows
        self._windows = sorted(set(model.windows), key=lambda w: w or 0)
        self._programs = decode_attention.PROGRAMS_AN_SM * lanes.all
        slots = SLOTS * most_rows
        width = -(-most_context // PAGE_SIZE) + 1
        self._tables = Tables(slots, width, device)
        self._scratch = decode_attention.DecodeScratch(
            most_rows, model.heads, model.kv_heads, model.head_dim, self._programs, device
        )
        kinds = len(self._windows)
        items = self._scratch.items
        self._command = Command(
            {
                "rows": ((most_rows,), np.int32),
                "contexts": ((most_rows,), np.int32),
                **{name: ((most_rows,), kind) for name, kind in COLUMNS.items()},
                "counts": ((kinds, 1), np.int32),
                "begins": ((kinds, most_rows + 1), np.int32),
                "items": ((kinds, decode_attention.ITEM_FIELDS, items), np.int32),
                "alone": ((kinds, items), np.int32),
            },
            device,
        )
        self._tokens = torch.zeros(most_rows, dtype=torch.int32, device=device)
        self._slots_fed = torch.full((most_rows,), -1, dtype=torch.int32, device=device)
        self._drawer = Drawer(model.vocab_size, most_rows, device)
        self.graphs = Graphs(lanes, buckets_for(most_rows), self._launch_forward)
        self._free_slots = list(range(slots))[::-1]
        self._row: dict[int, Row] = {}
        self._rows: list[Row] = []
        self._columns: dict[str, npt.NDArray[Any]] = {
            "slot": np.zeros(most_rows, np.int32),
            "context": np.zeros(most_rows, np.int64),
            "position": np.zeros(most_rows, np.int64),
            "pages": np.zeros(most_rows, np.int64),
            "left": np.zeros(most_rows, np.int64),
            "seed": np.zeros(most_rows, np.uint64),
            **{name: np.zeros(most_rows, kind) for name, kind in COLUMNS.items() if name != "chance"},
        }
        self._prepared: tuple[npt.NDArray[np.intp], int] | None = None
        """Places and bucket of a step that the device has been told of."""
        self._steps = 0
        self._collected = 0
        self._flying: deque[Step] = deque()
        self._leaving: list[Row] = []

    # --- who is in it -----------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self._rows)

    def leases(self) -> list[int]:
        return [row.lease for row in self._rows]

    def context_tokens(self) -> int:
        """Tokens in the pool, over the batch, as of the step launched last."""
        return int(self._columns["context"][: len(self)].sum())

    @property
    def flying(self) -> int:
        """Steps on the device whose outcomes are not fetched."""
        return len(self._flying)

    def add(self, lease: int, context: int, table: Pages, draw: Draw) -> None:
        """As `DecodeBatch.add`. Raises ValueError also where the batch is full."""
        if lease in self._row:
            raise ValueError(f"lease {lease} is in the batch")
        if not draw.output or not 0 < context <= len(table) * PAGE_SIZE or len(table) > self._tables.pages.shape[1]:
            raise ValueError(f"lease {lease}: {context} tokens, {len(table)} pages, {len(draw.output)} output tokens")
        if len(self) >= self._most_rows or not self._free_slots:
            raise ValueError(f"lease {lease}: the batch has {len(self)} of {self._most_rows} rows")
        with self._lanes.on():
            history = self._drawer.remember(draw)
            rules = Rules(draw, self._forward.model.vocab_size, self._forward.pool.device, history)
        row = Row(lease, self._free_slots.pop(), draw, rules)
        row.place = len(self._rows)
        self._rows.append(row)
        self._row[lease] = row
        values = {
            "slot": row.slot,
            "context": context,
            "position": len(draw.output),
            "pages": len(table),
            "left": draw.stopping.max_tokens - len(draw.output),
            "seed": draw.sampling.seed,
            **columns(draw, history),
        }
        for name, value in values.items():
            self._columns[name][row.place] = value
        self._tables.put_pages(row.slot, 0, table)
        self._tables.put_token(row.slot, draw.output[-1])
        self._prepared = None

    def remove(self, lease: int) -> None:
        """Raises KeyError where it is not in the batch. Its pages are the device's until `quiet` says otherwise."""
        row = self._row.pop(lease)
        self._prepared = None
        last = self._rows.pop()
        if last is not row:
            for column in self._columns.values():
                column[row.place] = column[last.place]
            last.place = row.place
            self._rows[row.place] = last
        row.gone = True
        self._leaving.append(row)

    def quiet(self) -> list[int]:
        """Leases that have left since the last call and that nothing on the device touches any more."""
        done = [row for row in self._leaving if row.last_step <= self._collected]
        if done:
            self._leaving = [row for row in self._leaving if row.last_step > self._collected]
            for row in done:
                self._free_slots.append(row.slot)
                self._drawer.forget(row.rules.history)
        return [row.lease for row in done]

    def wanting_pages(self) -> list[int]:
        """Leases whose next token has no page to put its KV into. A step leaves them out."""
        c, count = self._columns, len(self)
        full = (c["context"][:count] >= c["pages"][:count] * PAGE_SIZE) & (c["left"][:count] > 0)
        return [self._rows[place].lease for place in np.flatnonzero(full).tolist()]

    def grow(self, lease: int, pages: Sequence[int] | Pages) -> None:
        """Further pages, behind those that it has. Raises KeyError where it is not in the batch."""
        row = self._row[lease]
        held = int(self._columns["pages"][row.place])
        self._tables.put_pages(row.slot, held, pages)
        self._columns["pages"][row.place] += len(pages)
        self._prepared = None

    # --- a step -----------------------------------------------------------------------------------------------------

    def step(self, pulse: Pulse, *, ahead: bool = True) -> list[tuple[int, Sampled | Failed]]:
        """Launches a step of all that have room, and answers for the one before, as `DecodeBatch.step` does.

        Nothing to launch: answers for what is on the device. The first step of all answers nothing. Not `ahead`: waits
        for the step that it launches, too, and answers for it.
        """
        launched = self._launch()
        found = []
        while len(self._flying) > (launched and ahead):
            found += self._collect(pulse)
        return found

    def drain(self, pulse: Pulse) -> list[tuple[int, Sampled | Failed]]:
        """The outcomes of all steps on the device."""
        found = []
        while self._flying:
            found += self._collect(pulse)
        return found

    def prepare(self) -> None:
        """Tells the device of the next step, so that nothing but its launch is left for the moment when it may begin.
        Another prepare, or any change of the batch, makes it void."""
        if self._prepared is None:
            c, count = self._columns, len(self)
            ready = (c["context"][:count] < c["pages"][:count] * PAGE_SIZE) & (c["left"][:count] > 0)
            places = np.flatnonzero(ready)
            if len(places):
                with self._lanes.on():
                    self._tables.send()
                    self._prepared = places, self._fill(places)
                    self._command.send()

    def _launch(self) -> bool:
        self.prepare()
        if self._prepared is None:
            return False
        (places, bucket), self._prepared = self._prepared, None
        with self._lanes.on():
            self.graphs.run(bucket)
            self._fly(places)
        c = self._columns
        c["context"][places] += 1
        c["position"][places] += 1
        c["left"][places] -= 1
        return True

    def _fly(self, places: npt.NDArray[np.intp]) -> None:
        """Samples, and notes who took part."""
        given = self._command.device
        rows = [self._rows[place] for place in places.tolist()]
        positions: list[int] = self._columns["position"][places].tolist()
        special = [
            (at, position, row.rules)
            for at, (row, position) in enumerate(zip(rows, positions, strict=True))
            if not row.rules.plain
        ]
        count = len(rows)
        drawn = self._drawer.draw(self._forward.logits[:count], given["rows"][:count], given, special, self._tables.fed)
        done = torch.cuda.Event()
        done.record()
        self._steps += 1
        for row in rows:
            row.last_step = self._steps
        self._flying.append(Step(self._steps, rows, positions, drawn, done))

    def _fill(self, places: npt.NDArray[np.intp]) -> int:
        """The command for these places; the bucket."""
        count = len(places)
        bucket = self.graphs.bucket(count)
        assert bucket is not None, "the batch has no more rows than its greatest bucket"
        c, say = self._columns, self._command.next()
        contexts = c["context"][places]
        say["rows"][:count] = c["slot"][places]
        say["rows"][count:] = -1
        say["contexts"][:count] = contexts
        say["contexts"][count:] = 0
        for name in COLUMNS:
            if name != "chance":
                say[name][:count] = c[name][places]
        say["chance"][:count] = chances(say["temperature"][:count], c["seed"][places], c["position"][places])
        for kind, window in enumerate(self._windows):
            self._cut(say, kind, contexts, window)
        return bucket

    def _cut(
        self, say: dict[str, npt.NDArray[Any]], kind: int, contexts: npt.NDArray[np.int64], window: int | None
    ) -> None:
        items, begins = decode_attention.cut(contexts, window, self._forward.model.kv_heads, self._programs)
        number = items.shape[1]
        say["counts"][kind] = number
        say["items"][kind, :, :number] = items
        say["alone"][kind, :number] = np.diff(begins)[items[0]] == 1
        say["begins"][kind, : len(begins)] = begins
        say["begins"][kind, len(begins) :] = begins[-1]

    def _launch_forward(self, bucket: int) -> None:
        """What is captured: from the command to logits, for the first `bucket` places."""
        given = self._command.device
        rows, contexts = given["rows"][:bucket], given["contexts"][:bucket]
        tokens, slots = self._tokens[:bucket], self._slots_fed[:bucket]
        feeding.feed(rows, contexts, self._tables.fed, self._tables.pages, tokens, slots)
        forward, windows = self._forward, self._forward.model.windows
        kinds = {window: kind for kind, window in enumerate(self._windows)}

        def attend(index: int, queries: torch.Tensor, out: torch.Tensor) -> None:
            kind = kinds[windows[index]]
            cuts = given["items"][kind], given["counts"][kind], given["alone"][kind], given["begins"][kind]
            decode_attention.attend(queries, forward.pool[index], self._tables.pages, rows, cuts, self._scratch, out)

        forward.run(Fed(tokens, contexts, slots), self._rotation, attend)

    def warm(self) -> None:
        """Compiles and loads what a step launches beside its graph. Touches no sequence."""
        self._say_nothing()
        with self._lanes.on():
            given = self._command.device
            self._tables.warm()
            self.graphs.run(self.graphs.least)
            self._drawer.draw(self._forward.logits[:1], given["rows"][:1], given, [], self._tables.fed)
            self._lanes.stream.synchronize()

    def capture(self, budget_s: float, progress: Any = lambda done, total: None) -> None:
        """Captures graphs, as `Graphs.capture`; only between steps."""
        self._say_nothing()
        self.graphs.capture(budget_s, progress)

    def capture_only(self, bucket: int, sms: int) -> None:
        """Captures one graph; only between steps."""
        self._say_nothing()
        self.graphs.capture_one(bucket, sms)

    def _say_nothing(self) -> None:
        """A command of padding alone: what is launched to warm up and to capture touches no sequence."""
        say = self._command.next()
        say["rows"][:] = -1
        say["contexts"][:] = 0
        say["counts"][:] = 0
        say["begins"][:] = 0
        with self._lanes.on():
            self._command.send()

    # --- outcomes ---------------------------------------------------------------------------------------------------

    def _collect(self, pulse: Pulse) -> list[tuple[int, Sampled | Failed]]:
        step = self._flying.popleft()
        wait_for(step.done, pulse)
        self._collected = step.number
        wanted = {at: row.rules.top_logprobs for at, row in enumerate(step.rows) if row.rules.logprobs}
        logprobs = step.drawn.logprobs(wanted) if wanted else {}
        answers: list[tuple[int, Sampled | Failed]] = []
        tokens: list[int] = step.drawn.tokens.tolist()
        for at, (row, token, position) in enumerate(zip(step.rows, tokens, step.positions, strict=True)):
            if row.gone:
                continue
            if token == NOT_FINITE:
                self.remove(row.lease)
                answers.append((row.lease, Failed("the model's output is not finite")))
                continue
            end = end_at(token, position, row.draw.stopping)
            if end is not None:
                self.remove(row.lease)
            answers.append((row.lease, Sampled(token, position, logprobs.get(at), end)))
        return answers

    def last_logits(self) -> torch.Tensor:
        """[rows, vocab] of the step launched last, in the order of its rows; waits for the device. For tests."""
        torch.cuda.synchronize()
        return self._forward.logits[: len(self._flying[-1].rows)].float()
