"""The continuous decode batch on a GPU: one step is launched while the one before it is on the device.

A step needs from the CPU the rows, their lengths, new pages and random numbers. These do not depend on the tokens of
the step before, which stay on the device. So the CPU works on the next step while the GPU works on this one. The price:
that a sequence has ended with a stop token is known one step later, and that step's token is thrown away.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from semipd.core.config import PAGE_SIZE, pages_for
from semipd.engine.attention import Pages
from semipd.engine.cuda.block_tables import BlockTables
from semipd.engine.cuda.chunks import PrefillChunks, prompt_outcomes
from semipd.engine.cuda.decode_rows import DecodeRow, DecodeRows, row_columns
from semipd.engine.cuda.device_wait import wait_for
from semipd.engine.cuda.forward import ForwardPass, PassInputs, Rotation
from semipd.engine.cuda.graphs import BucketGraphs, GraphCapture
from semipd.engine.cuda.kernels import decode_attention
from semipd.engine.cuda.launch_args import LaunchArgs
from semipd.engine.cuda.mixed import MixedSteps
from semipd.engine.cuda.sampler import SAMPLING_COLUMNS, DeviceSampler, PendingTokens, SamplingRules
from semipd.engine.cuda.streams import Streams
from semipd.engine.prefill_inputs import PrefillItem, PromptOutcomes
from semipd.engine.pulse import Pulse
from semipd.engine.sampling_result import SamplingInput, SequenceFailure, TokenOutcome, token_outcome

BUCKETS = (1, 2, 4, 8, 12, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384, 448, 512)
"""The numbers of rows of captured steps. They are further apart where padding costs little beside the step."""
SLOTS = 3
"""The number of slots for each row of the batch. Rows that have left keep theirs while a step on the device uses them,
and there are two steps at most."""


def buckets_for(most_rows: int) -> list[int]:
    inside = [bucket for bucket in BUCKETS if bucket < most_rows]
    top = BUCKETS[-1]
    beyond = list(range(top + 128, most_rows, 128)) if most_rows > top else []
    return [*inside, *beyond, most_rows]


@dataclass(slots=True)
class LaunchedStep:
    """A step on the device, or done and not fetched."""

    number: int
    rows: list[DecodeRow]
    positions: list[int]
    prompts: Sequence[PrefillItem]
    rules: list[SamplingRules]
    """The sampling rules of the rows, then of the prompts that are sampled after."""
    sampled: PendingTokens | None
    """None: nothing is sampled."""
    done: torch.cuda.Event


class CudaDecodeBatch:
    """A decode batch on a GPU.

    Its methods do what those of `semipd.engine.batch.CpuDecodeBatch` do, but `step` returns the outcomes of the step
    before. A sequence that has left may still be used by the device until `quiet` names it.
    """

    def __init__(
        self,
        forward: ForwardPass,
        rotation: Rotation,
        streams: Streams,
        most_rows: int,
        most_context: int,
        chunks: PrefillChunks | None = None,
    ) -> None:
        """`chunks`: for the prompts that steps may have, and for which `forward` has room too; None: steps have
        none."""
        model, device = forward.model, forward.pool.device
        self._forward, self._rotation, self._streams = forward, rotation, streams
        self._most_rows = most_rows
        slots = SLOTS * most_rows
        self._tables = BlockTables(slots, pages_for(most_context) + 1, device)
        self._device_rows = DecodeRows(forward, self._tables, most_rows, decode_attention.PROGRAMS_AN_SM * streams.all)
        self._args = LaunchArgs(
            {
                "rows": ((most_rows,), np.int32),
                **{name: ((most_rows,), kind) for name, kind in SAMPLING_COLUMNS.items()},
                **self._device_rows.fields,
            },
            device,
        )
        self._tokens = torch.zeros(most_rows, dtype=torch.int32, device=device)
        self._slots_fed = torch.full((most_rows,), -1, dtype=torch.int32, device=device)
        self._sampler = DeviceSampler(model.vocab_size, forward.rows, device)
        self.graphs = BucketGraphs(streams, buckets_for(most_rows), self._launch_forward, self._send_padding)
        """Graphs of steps without prompts."""
        kinds = [self.graphs]
        self.mixed: MixedSteps | None = None
        if chunks is not None:
            rows = self._device_rows
            self.mixed = MixedSteps(forward, rotation, streams, rows, chunks, self._tables, self._sampler, most_rows)
            kinds.append(self.mixed.graphs)
        # Graphs of mixed passes come before those of the green contexts: they are few, and save more launches.
        self.capture = GraphCapture(kinds)
        self._prompt_outcomes: list[PromptOutcomes] = []
        self._free_slots = list(range(slots))[::-1]
        self._row: dict[int, DecodeRow] = {}
        self._held: frozenset[int] = frozenset()
        self._rows: list[DecodeRow] = []
        self._columns = row_columns(most_rows)
        self._prepared: tuple[npt.NDArray[np.intp], int] | None = None
        """Places and bucket of a step whose launch arguments are on the device."""
        self._steps = 0
        self._collected = 0
        self._flying: deque[LaunchedStep] = deque()
        self._leaving: list[DecodeRow] = []

    # --- sequences -----------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self._rows)

    def leases(self) -> list[int]:
        return [row.lease for row in self._rows]

    def context_tokens(self) -> int:
        """Returns the tokens in the pool over the sequences that are not held, as of the step launched last."""
        contexts = self._columns["context"]
        return int(contexts[: len(self)].sum()) - int(contexts[self._held_places()].sum())

    def hold(self, leases: Collection[int]) -> None:
        """Does what `CpuDecodeBatch.hold` does. A step that is on the device goes on with the sequences."""
        self._held = frozenset(leases)
        self._prepared = None

    def _held_places(self) -> list[int]:
        """Returns the places of the rows that are held."""
        return [self._row[lease].place for lease in self._held if lease in self._row] if self._held else []

    @property
    def flying(self) -> int:
        """The number of steps on the device whose outcomes are not fetched, with those of prompts alone."""
        return len(self._flying)

    def add(self, lease: int, context: int, table: Pages, sampling: SamplingInput) -> None:
        """Adds a sequence, as `CpuDecodeBatch.add` does. Raises ValueError also where the batch is full."""
        if lease in self._row:
            raise ValueError(f"lease {lease} is in the batch")
        if not sampling.output or not 0 < context <= len(table) * PAGE_SIZE or len(table) > self._tables.pages.shape[1]:
            raise ValueError(
                f"lease {lease}: {context} tokens, {len(table)} pages, {len(sampling.output)} output tokens"
            )
        if len(self) >= self._most_rows or not self._free_slots:
            raise ValueError(f"lease {lease}: the batch has {len(self)} of {self._most_rows} rows")
        with self._streams.on():
            history = self._sampler.remember(sampling)
            rules = SamplingRules(sampling, self._forward.model.vocab_size, self._forward.pool.device, history)
        row = DecodeRow(lease, self._free_slots.pop(), sampling, rules)
        row.place = len(self._rows)
        self._rows.append(row)
        self._row[lease] = row
        for name, value in row.values(context, len(table)).items():
            self._columns[name][row.place] = value
        self._tables.put_pages(row.slot, 0, table)
        self._tables.put_token(row.slot, sampling.output[-1])
        self._prepared = None

    def remove(self, lease: int) -> None:
        """Takes a sequence out of the batch. The device may use its pages until `quiet` names it.

        Raises KeyError where it is not in the batch.
        """
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
        """Returns each lease that has left and that nothing on the device uses any more, once."""
        done = [row for row in self._leaving if row.last_step <= self._collected]
        if done:
            self._leaving = [row for row in self._leaving if row.last_step > self._collected]
            for row in done:
                self._free_slots.append(row.slot)
                self._sampler.forget(row.rules.history)
        return [row.lease for row in done]

    def wanting_pages(self) -> list[int]:
        """Returns the leases, except held ones, whose next token has no page for its KV. A step leaves them out."""
        c, count = self._columns, len(self)
        full = (c["context"][:count] >= c["pages"][:count] * PAGE_SIZE) & (c["left"][:count] > 0)
        full[self._held_places()] = False
        return [self._rows[place].lease for place in np.flatnonzero(full).tolist()]

    def grow(self, lease: int, pages: Sequence[int] | Pages) -> None:
        """Adds pages behind those that a sequence has. Raises KeyError where it is not in the batch."""
        row = self._row[lease]
        held = int(self._columns["pages"][row.place])
        self._tables.put_pages(row.slot, held, pages)
        self._columns["pages"][row.place] += len(pages)
        self._prepared = None

    # --- a step -----------------------------------------------------------------------------------------------------

    def step(
        self, pulse: Pulse, *, ahead: bool = True, prompts: Sequence[PrefillItem] = ()
    ) -> list[tuple[int, TokenOutcome]]:
        """Launches a step of all sequences that have room, and returns the outcomes of the step before.

        The first step returns nothing. Where there is nothing to launch, the outcomes of what is on the device are
        returned. Not `ahead`: the call also waits for the step that it launches, and returns its outcomes.

        `prompts`: chunks, as for `CpuDecodeBatch.step`. The device uses their pages until `prompt_outcomes` has named
        them. Raises ValueError, with nothing launched, where a prompt's lease is in the batch, and where the prompts
        are more than the batch has buffers for: in number (MIXED_PROMPTS), in tokens or in pages.
        """
        launched = self._launch_mixed(prompts) if prompts else self._launch()
        found = []
        while len(self._flying) > (launched and ahead):
            found += self._collect(pulse)
        return found

    def prompt_outcomes(self) -> list[PromptOutcomes]:
        """Returns what `CpuDecodeBatch.prompt_outcomes` does. Outcomes are known when their step is fetched, mostly one
        step later."""
        known, self._prompt_outcomes = self._prompt_outcomes, []
        return known

    def drain(self, pulse: Pulse) -> list[tuple[int, TokenOutcome]]:
        """Waits for all steps on the device and returns their outcomes."""
        found = []
        while self._flying:
            found += self._collect(pulse)
        return found

    def wait(self, pulse: Pulse) -> None:
        """Waits until the device has done all steps that were launched. Their outcomes are still to be fetched."""
        if self._flying:
            wait_for(self._flying[-1].done, pulse)

    def prepare(self) -> None:
        """Sends the launch arguments of the next step, so that only its launch is left for when it may begin.

        A change of the batch or a step with prompts makes them void.
        """
        if self._prepared is None:
            places = self._ready()
            if len(places):
                with self._streams.on():
                    self._tables.send()
                    self._prepared = places, self._fill(places)
                    self._args.send()

    def _ready(self) -> npt.NDArray[np.intp]:
        """Returns the places of the rows that have room and tokens to come and are not held."""
        c, count = self._columns, len(self)
        ready = (c["context"][:count] < c["pages"][:count] * PAGE_SIZE) & (c["left"][:count] > 0)
        ready[self._held_places()] = False
        return np.flatnonzero(ready)

    def _launch(self) -> bool:
        self.prepare()
        if self._prepared is None:
            return False
        (places, bucket), self._prepared = self._prepared, None
        args, count = self._args.device, len(places)
        with self._streams.on():
            self.graphs.run(bucket)
            logits = self._forward.logits[:count]
            sampled = self._sampler.sample(logits, args["rows"][:count], args, self._special(places), self._tables.fed)
            self._fly(places, sampled)
        return True

    def _launch_mixed(self, prompts: Sequence[PrefillItem]) -> bool:
        if self.mixed is None:
            raise ValueError("the batch is made for no prompts")
        for item in prompts:
            if item.lease in self._row:
                raise ValueError(f"lease {item.lease} is in the batch")
        self.mixed.check(prompts)
        self._prepared = None
        places = self._ready()
        with self._streams.on():
            self._tables.send()
            sampled, rules = self.mixed.launch(self._columns, places, self._special(places), prompts)
            self._fly(places, sampled, prompts, rules)
        return True

    def _special(self, places: npt.NDArray[np.intp]) -> list[tuple[int, int, SamplingRules]]:
        """Returns the rows at these places of which the sampler needs more than their columns."""
        positions = self._columns["position"]
        rows = ((at, place, self._rows[place].rules) for at, place in enumerate(places.tolist()))
        return [(at, int(positions[place]), rules) for at, place, rules in rows if not rules.plain]

    def _fly(
        self,
        places: npt.NDArray[np.intp],
        sampled: PendingTokens | None,
        prompts: Sequence[PrefillItem] = (),
        rules: Sequence[SamplingRules] = (),
    ) -> None:
        """Notes which rows and prompts take part in the step that was launched.

        `rules`: the sampling rules of the prompts that are sampled after.
        """
        done = torch.cuda.Event()
        done.record()
        self._steps += 1
        c, rows = self._columns, [self._rows[place] for place in places.tolist()]
        for row in rows:
            row.last_step = self._steps
        positions: list[int] = c["position"][places].tolist()
        all_rules = [*(row.rules for row in rows), *rules]
        self._flying.append(LaunchedStep(self._steps, rows, positions, prompts, all_rules, sampled, done))
        c["context"][places] += 1
        c["position"][places] += 1
        c["left"][places] -= 1

    def _fill(self, places: npt.NDArray[np.intp]) -> int:
        """Fills the launch arguments for these places, and returns the bucket."""
        count = len(places)
        bucket = self.graphs.bucket(count)
        assert bucket is not None, "the batch has no more rows than its greatest bucket"
        self._device_rows.fill(self._args.next(), self._columns, places)
        return bucket

    def _launch_forward(self, bucket: int) -> None:
        """Launches what is captured: from the launch arguments to the logits, for the first `bucket` places."""
        args = self._args.device
        tokens, slots = self._tokens[:bucket], self._slots_fed[:bucket]
        self._device_rows.feed(args, tokens, slots)
        inputs = PassInputs(tokens, args["contexts"][:bucket], slots)
        self._forward.run(inputs, self._rotation, self._device_rows.attention(args, bucket))

    def warm(self) -> None:
        """Compiles and loads what a step launches beside its graph. It touches no sequence."""
        self._send_padding()
        with self._streams.on():
            args = self._args.device
            self._tables.warm()
            self.graphs.run(self.graphs.least)
            self._sampler.sample(self._forward.logits[:1], args["rows"][:1], args, [], self._tables.fed)
            if self.mixed is not None:
                self.mixed.warm()
            self._streams.stream.synchronize()

    def _send_padding(self) -> None:
        """Sends launch arguments of padding only, so that what is launched to warm up and to capture touches no
        sequence."""
        self._device_rows.fill_padding(self._args.next())
        with self._streams.on():
            self._args.send()

    # --- outcomes ---------------------------------------------------------------------------------------------------

    def _collect(self, pulse: Pulse) -> list[tuple[int, TokenOutcome]]:
        step = self._flying.popleft()
        wait_for(step.done, pulse)
        self._collected = step.number
        tokens = step.sampled.values() if step.sampled is not None else []
        logprobs = step.sampled.logprobs(step.rules) if step.sampled is not None else {}
        if step.prompts:
            outcomes = prompt_outcomes(step.prompts, tokens, logprobs, len(step.rows))
            self._prompt_outcomes.append((step.prompts, outcomes))
        answers: list[tuple[int, TokenOutcome]] = []
        for at, (row, position) in enumerate(zip(step.rows, step.positions, strict=True)):
            if row.gone:
                continue
            found = token_outcome(tokens[at], position, row.sampling.stopping, logprobs.get(at))
            if isinstance(found, SequenceFailure) or found.end is not None:
                self.remove(row.lease)
            answers.append((row.lease, found))
        return answers

    def last_logits(self) -> torch.Tensor:
        """Returns [rows, vocab] of the step launched last, in the order of its rows. Waits for the device. For
        tests."""
        torch.cuda.synchronize()
        return self._forward.logits[: len(self._flying[-1].rows)].float()
