"""Steps with prompts inside: the batch's rows and chunks of prompts in one forward pass (Sarathi-Serve,
arXiv 2403.02310).

The rows come first, then the chunks, token after token. All products are over both; attention is the decode kernel for
the rows and prefill's for the chunks, into one buffer. The launches of a pass of few tokens would take the CPU longer
than the pass takes the device: it is a graph by its total of tokens, in which any rows and chunks find place, padded.
Others are launched kernel by kernel, without padding and with FlashInfer's attention where there is its kernel.
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
"""Tokens of a captured pass. With more, the device takes longer than the launches."""
WARM_TOKENS = 2048

SpecialPlaces = list[tuple[int, int, SamplingRules]]


class MixedSteps:
    """Shares the buffers of the batch that it is of: its passes are steps of the batch, in the same order."""

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
        # The other phase has nothing to do where its prompts are inside steps: they have the whole device.
        self.graphs = BucketGraphs(streams, buckets, self._begin_captured, self._send_padding, choices=[streams.all])

    def check(self, prompts: Sequence[PrefillItem]) -> None:
        """Raises ValueError where a step has no room for so many."""
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
        """Of the graph that such a pass takes, where it is captured; None: it is launched kernel by kernel."""
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
        """On the current stream. `places`: of the batch's `columns`; `special`: as `DeviceSampler.draw` takes it.

        What is drawn is for the rows and then for the prompts to sample after, whose rules are the second answer.
        None: there is neither.
        """
        draws = [item for item in prompts if item.sampling is not None]
        rules = [self._rules(item) for item in draws]
        count = len(places)
        rotation = self._chunks.own_rotation(prompts, columns["context"][places])
        bucket = self.bucket(count, prompts)
        if bucket is not None and not self.graphs.ready(bucket):
            bucket = None  # without its graph, padding is nothing but a burden
        tokens = count + sum(len(item.tokens) for item in prompts)
        pages = self._fill(columns, places, prompts, draws, rules, bucket or tokens, own_rotation=rotation is not None)
        self._args.send(pages)
        if bucket is None:
            self._begin(prompts, count, tokens, rotation or self._rotation)
        else:
            self.graphs.run(bucket)
        drawn = self._end(tokens, count + len(draws), [*special, *special_places(draws, rules, count)])
        for each in rules:
            self._sampler.forget(each.history)  # the next pass comes after this one on the device
        return drawn, rules

    def warm(self) -> None:
        """Compiles and loads what is launched, captured or not. Touches no sequence; reads page 0, and writes
        nowhere."""
        tokens = min(self._chunks.most_tokens, WARM_TOKENS)
        nobody = PrefillItem(0, [0] * tokens, 0, np.zeros(pages_for(tokens), np.int32))
        host = self._args.next()
        self._fill_nothing(host)
        self._chunks.fill(host, [nobody], 1)
        host["slots"][:] = -1
        self._args.send()
        self._begin([nobody], 1, 1 + tokens, self._rotation)
        self._end(1 + tokens, 2, [])

    # --- what the device is told ------------------------------------------------------------------------------------

    def _fill(
        self,
        columns: Mapping[str, npt.NDArray[Any]],
        places: npt.NDArray[np.intp],
        prompts: Sequence[PrefillItem],
        draws: Sequence[PrefillItem],
        rules: Sequence[SamplingRules],
        padded: int,
        *,
        own_rotation: bool,
    ) -> int:
        """The command for a pass padded to so many tokens; how many page numbers the prompts have."""
        host, count = self._args.next(), len(places)
        self._rows.fill(host, columns, places)
        # The rows' tokens and slots are on the device alone: `DecodeRows.feed` puts them there.
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
        fill_sampling_columns(host, count, draws, rules)
        return pages

    def _fill_nothing(self, host: HostArgs) -> None:
        self._rows.fill_nothing(host)
        for name in ("tokens", "positions", "wanted", "count", "pages", *SAMPLING_COLUMNS):
            host[name][:] = 0
        host["slots"][:] = -1
        host["history"][:] = -1

    def _send_padding(self) -> None:
        """A command of padding alone: what is launched to warm up and to capture touches no sequence."""
        self._fill_nothing(self._args.next())
        with self._streams.on():
            self._args.send()

    def _rules(self, item: PrefillItem) -> SamplingRules:
        assert item.sampling is not None
        model, device = self._forward.model, self._forward.pool.device
        return SamplingRules(item.sampling, model.vocab_size, device, self._sampler.remember(item.sampling))

    # --- how it is computed -----------------------------------------------------------------------------------------

    def _begin_captured(self, bucket: int) -> None:
        """What is captured: from the command to the last attention, for any rows and prompts of so many tokens."""
        args = self._args.device
        places = min(bucket, self._most_rows)
        self._begin_with(self._chunks.captured_attention(bucket, args), places, bucket, self._rotation)

    def _begin(self, prompts: Sequence[PrefillItem], rows: int, tokens: int, rotation: Rotation) -> None:
        attend = self._chunks.attention(prompts, self._args.device, rows)
        self._begin_with(attend, rows, tokens, rotation)

    def _begin_with(self, of_chunks: AttendFunction, places: int, tokens: int, rotation: Rotation) -> None:
        """`places`: the first ones, among which are all rows; the others have their tokens from the command."""
        args, attend = self._args.device, of_chunks
        if places:
            self._rows.feed(args, args["tokens"][:places], args["slots"][:places], pad=False)
            of_rows = self._rows.attention(args, places)

            def attend(index: int, queries: torch.Tensor, out: torch.Tensor) -> None:
                of_rows(index, queries[:places], out[:places])
                of_chunks(index, queries, out)

        fed = PassInputs(args["tokens"][:tokens], args["positions"][:tokens], args["slots"][:tokens])
        self._forward.begin(fed, rotation, attend)

    def _end(self, tokens: int, drawn: int, special: SpecialPlaces) -> PendingTokens | None:
        """From the last attention to what is drawn: few launches, for as many places as there are."""
        args = self._args.device
        # One row is computed where nothing is sampled: the last layer has nothing else to do with the others.
        logits = self._forward.end(tokens, args["wanted"][: max(1, drawn)])
        if not drawn:
            return None
        return self._sampler.draw(logits, args["rows"][:drawn], args, special, self._tables.fed)
