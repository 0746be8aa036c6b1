"""Mixed steps: the rows of the decode batch and chunks of prompts in one forward pass (Sarathi-Serve, arXiv
2403.02310).

The rows come first, then the chunks, token after token. All matrix products are over both. Attention uses the decode
kernel for the rows and prefill's for the chunks, and writes into one buffer. The launches of a pass of few tokens would
take the CPU longer than the pass takes the device. So such a pass is a graph for its total of tokens, in which any rows
and chunks fit, with padding. Other passes are launched kernel by kernel, without padding, and with FlashInfer's
attention where its kernel is there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from semipd.core.config import pages_for
from semipd.engine.cuda.block_tables import BlockTables
from semipd.engine.cuda.chunks import HostArgs, PrefillChunks, fill_sampling_columns, special_places
from semipd.engine.cuda.decode_rows import DecodeRows
from semipd.engine.cuda.forward import AttendFunction, ForwardPass, PassInputs, Rotation
from semipd.engine.cuda.graphs import BucketGraphs
from semipd.engine.cuda.launch_args import LaunchArgs
from semipd.engine.cuda.sampler import SAMPLING_COLUMNS, DeviceSampler, PendingTokens, SamplingRules
from semipd.engine.cuda.streams import Streams
from semipd.engine.prefill_inputs import PrefillItem

BUCKETS = (64, 96, 128, 192, 256, 320, 384, 448, 512, 576, 640, 768, 896, 1024)
"""The numbers of tokens of captured passes. With more, the device takes longer than the launches."""
WARM_TOKENS = 2048

SpecialPlaces = list[tuple[int, int, SamplingRules]]
"""Place, output position and rules of each place of which the sampler needs more than its columns."""


class MixedSteps:
    """The mixed steps of a batch. They share the batch's buffers, and run in the same order as its other steps."""

    def __init__(
        self,
        forward: ForwardPass,
        rotation: Rotation,
        streams: Streams,
        rows: DecodeRows,
        chunks: PrefillChunks,
        tables: BlockTables,
        sampler: DeviceSampler,
        most_rows: int,
    ) -> None:
        self._forward, self._rotation, self._streams, self._rows, self._chunks = (
            forward,
            rotation,
            streams,
            rows,
            chunks,
        )
        self._tables, self._sampler, self._most_rows = tables, sampler, most_rows
        tokens, places = most_rows + chunks.most_tokens, most_rows + chunks.most_prompts
        self._args = LaunchArgs(
            {
                "rows": ((places,), np.int32),
                **{name: ((places,), kind) for name, kind in SAMPLING_COLUMNS.items()},
                **rows.fields,
                "wanted": ((places,), np.int32),
                "tokens": ((tokens,), np.int32),
                "positions": ((tokens,), np.int32),
                "slots": ((tokens,), np.int32),
                **chunks.fields,
            },
            forward.pool.device,
        )
        largest = min(BUCKETS[-1], tokens)
        buckets = [*(bucket for bucket in BUCKETS if bucket < largest), largest]
        # Prefill has nothing to do while its prompts are inside decode steps, so these have the whole device.
        self.graphs = BucketGraphs(streams, buckets, self._begin_captured, self._send_padding, choices=[streams.all])

    def check(self, prompts: Sequence[PrefillItem]) -> None:
        """Raises ValueError where a step has no room for these prompts."""
        tokens = sum(len(item.tokens) for item in prompts)
        pages = sum(pages_for(item.start + len(item.tokens)) for item in prompts)
        chunks = self._chunks
        for count, most, what in (
            (tokens, chunks.most_tokens, "tokens of prompts"),
            (len(prompts), chunks.most_prompts, "prompts"),
            (pages, chunks.most_pages, "pages of prompts"),
        ):
            if count > most:
                raise ValueError(f"a step of {count} {what}, at most {most} fit")

    def bucket(self, rows: int, prompts: Sequence[PrefillItem]) -> int | None:
        """Returns the bucket of such a pass; None: it is launched kernel by kernel."""
        if not self._chunks.capturable(prompts):
            return None
        return self.graphs.bucket(rows + sum(len(item.tokens) for item in prompts))

    def launch(
        self,
        columns: Mapping[str, npt.NDArray[Any]],
        places: npt.NDArray[np.intp],
        special: SpecialPlaces,
        prompts: Sequence[PrefillItem],
    ) -> tuple[PendingTokens | None, list[SamplingRules]]:
        """Launches a step on the current stream.

        `places`: the places of the rows in the batch's `columns`; `special`: as for `DeviceSampler.sample`. Returns the
        tokens of the rows, then of the prompts that are sampled after (None: there are neither), and the sampling rules
        of these prompts.
        """
        sampled_items = [item for item in prompts if item.sampling is not None]
        rules = [self._rules(item) for item in sampled_items]
        count = len(places)
        rotation = self._chunks.own_rotation(prompts, columns["context"][places])
        bucket = self.bucket(count, prompts)
        if bucket is not None and not self.graphs.is_captured(bucket):
            bucket = None  # without its graph, padding only costs time
        tokens = count + sum(len(item.tokens) for item in prompts)
        pages = self._fill(
            columns, places, prompts, sampled_items, rules, bucket or tokens, own_rotation=rotation is not None
        )
        self._args.send(pages)
        if bucket is None:
            self._begin(prompts, count, tokens, rotation or self._rotation)
        else:
            self.graphs.run(bucket)
        sampled = self._end(
            tokens, count + len(sampled_items), [*special, *special_places(sampled_items, rules, count)]
        )
        for each in rules:
            self._sampler.forget(each.history)  # the next pass comes after this one on the device
        return sampled, rules

    def warm(self) -> None:
        """Compiles and loads what is launched, captured or not. It reads page 0, and writes to no page."""
        tokens = min(self._chunks.most_tokens, WARM_TOKENS)
        dummy = PrefillItem(0, [0] * tokens, 0, np.zeros(pages_for(tokens), np.int32))
        host = self._args.next()
        self._fill_padding(host)
        self._chunks.fill(host, [dummy], 1)
        host["slots"][:] = -1
        self._args.send()
        self._begin([dummy], 1, 1 + tokens, self._rotation)
        self._end(1 + tokens, 2, [])

    # --- launch arguments ------------------------------------------------------------------------------------

    def _fill(
        self,
        columns: Mapping[str, npt.NDArray[Any]],
        places: npt.NDArray[np.intp],
        prompts: Sequence[PrefillItem],
        sampled_items: Sequence[PrefillItem],
        rules: Sequence[SamplingRules],
        padded: int,
        *,
        own_rotation: bool,
    ) -> int:
        """Fills the launch arguments for a pass padded to `padded` tokens, and returns how many page numbers the
        prompts have."""
        host, count = self._args.next(), len(places)
        self._rows.fill(host, columns, places)
        # The rows' tokens and slots are known on the device only: `DecodeRows.feed` fills them in.
        host["tokens"][:count] = 0
        host["slots"][:count] = -1
        host["positions"][:count] = np.arange(count) if own_rotation else columns["context"][places]
        pages, lasts = self._chunks.fill(host, prompts, count)
        tokens = count + sum(len(item.tokens) for item in prompts)
        for name, nothing in (("tokens", 0), ("positions", 0), ("slots", -1)):
            host[name][tokens:padded] = nothing
        host["wanted"][:] = 0
        host["wanted"][:count] = np.arange(count)
        host["wanted"][count : count + len(lasts)] = lasts
        fill_sampling_columns(host, count, sampled_items, rules)
        return pages

    def _fill_padding(self, host: HostArgs) -> None:
        self._rows.fill_padding(host)
        for name in ("tokens", "positions", "wanted", "count", "pages", *SAMPLING_COLUMNS):
            host[name][:] = 0
        host["slots"][:] = -1
        host["history"][:] = -1

    def _send_padding(self) -> None:
        """Sends launch arguments of padding only, so that what is launched to warm up and to capture touches no
        sequence."""
        self._fill_padding(self._args.next())
        with self._streams.on():
            self._args.send()

    def _rules(self, item: PrefillItem) -> SamplingRules:
        assert item.sampling is not None
        model, device = self._forward.model, self._forward.pool.device
        return SamplingRules(item.sampling, model.vocab_size, device, self._sampler.remember(item.sampling))

    # --- launches -----------------------------------------------------------------------------------------

    def _begin_captured(self, bucket: int) -> None:
        """Launches what is captured: from the launch arguments to the last attention, for any rows and prompts that
        fit."""
        args = self._args.device
        places = min(bucket, self._most_rows)
        self._begin_with(self._chunks.captured_attention(bucket, args), places, bucket, self._rotation)

    def _begin(self, prompts: Sequence[PrefillItem], rows: int, tokens: int, rotation: Rotation) -> None:
        attend = self._chunks.attention(prompts, self._args.device, rows)
        self._begin_with(attend, rows, tokens, rotation)

    def _begin_with(self, of_chunks: AttendFunction, places: int, tokens: int, rotation: Rotation) -> None:
        """Launches the pass up to its last attention.

        `places`: the number of first places, among which are all rows. The others have their tokens from the launch
        arguments.
        """
        args, attend = self._args.device, of_chunks
        if places:
            self._rows.feed(args, args["tokens"][:places], args["slots"][:places], pad=False)
            of_rows = self._rows.attention(args, places)

            def attend(index: int, queries: torch.Tensor, out: torch.Tensor) -> None:
                of_rows(index, queries[:places], out[:places])
                of_chunks(index, queries, out)

        inputs = PassInputs(args["tokens"][:tokens], args["positions"][:tokens], args["slots"][:tokens])
        self._forward.begin(inputs, rotation, attend)

    def _end(self, tokens: int, sampled: int, special: SpecialPlaces) -> PendingTokens | None:
        """Launches the rest, from the last attention to the sampled tokens: few launches, for `sampled` places."""
        args = self._args.device
        # One row is computed where nothing is sampled: the last layer has nothing else to do with the others.
        logits = self._forward.end(tokens, args["wanted"][: max(1, sampled)])
        if not sampled:
            return None
        return self._sampler.sample(logits, args["rows"][:sampled], args, special, self._tables.fed)
