"""Prefill on a GPU: prompts in chunks, one pass ahead of the device.

A short pass is a captured graph with Triton's attention, because the CPU's launches would take longer than the pass. A
long pass is launched kernel by kernel, faster than the device runs them, with FlashInfer's attention where its kernel
is there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from semipd.core.config import pages_for
from semipd.engine.cuda.chunks import (
    GRAPH_PROMPTS,
    PrefillChunks,
    fill_sampling_columns,
    prompt_outcomes,
    special_places,
)
from semipd.engine.cuda.device_wait import wait_for
from semipd.engine.cuda.forward import AttendFunction, ForwardPass, PassInputs, Rotation
from semipd.engine.cuda.graphs import BucketGraphs, GraphCapture
from semipd.engine.cuda.launch_args import LaunchArgs
from semipd.engine.cuda.sampler import SAMPLING_COLUMNS, DeviceSampler, PendingTokens, SamplingRules
from semipd.engine.cuda.streams import Streams
from semipd.engine.prefill_inputs import PrefillItem
from semipd.engine.pulse import Pulse
from semipd.engine.sampling_result import TokenOutcome

BUCKETS = (16, 32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 384, 448, 512, 640, 768, 896, 1024)
"""The numbers of tokens of captured passes."""
WARM_TOKENS = 2048


@dataclass(slots=True)
class PrefillPass:
    """A prefill pass. `sampled_items`: the items that are sampled after, in the order of their rows."""

    items: Sequence[PrefillItem]
    sampled_items: list[PrefillItem]
    rules: list[SamplingRules]
    tokens: int
    bucket: int | None
    """The bucket of the graph; None: the pass is launched kernel by kernel."""
    rotation: Rotation
    sampled: PendingTokens | None = None
    done: torch.cuda.Event | None = None
    """The event of its end; None: it is not launched."""


class CudaPrefill:
    """Prepares, launches and fetches prefill passes."""

    def __init__(self, forward: ForwardPass, rotation: Rotation, chunks: PrefillChunks, streams: Streams) -> None:
        self._forward, self._rotation, self._chunks, self._streams = forward, rotation, chunks, streams
        self._device = forward.pool.device
        tokens, rows = forward.most_tokens, forward.rows
        self._args = LaunchArgs(
            {
                "tokens": ((tokens,), np.int32),
                "positions": ((tokens,), np.int32),
                "slots": ((tokens,), np.int32),
                "wanted": ((rows,), np.int32),
                "rows": ((rows,), np.int32),
                **{name: ((rows,), kind) for name, kind in SAMPLING_COLUMNS.items()},
                **chunks.fields,
            },
            self._device,
        )
        self._sampler = DeviceSampler(forward.model.vocab_size, rows, self._device)
        largest = min(BUCKETS[-1], tokens)
        self.graphs = BucketGraphs(
            streams, sorted({b for b in BUCKETS if b < largest} | {largest}), self._launch_captured, self._send_padding
        )
        self.capture = GraphCapture([self.graphs])

    @property
    def most_pages(self) -> int:
        """The most pages of all prompts of a pass together."""
        return self._chunks.most_pages

    # --- a pass -----------------------------------------------------------------------------------------------------

    def prepare(self, items: Sequence[PrefillItem]) -> PrefillPass:
        """Sends the launch arguments of a pass, which must not exceed the forward pass's tokens and rows, and
        `most_pages`.

        A pass may be prepared while another is on the device. It must be launched before the next is prepared.
        """
        sampled_items = [item for item in items if item.sampling is not None]
        tokens = sum(len(item.tokens) for item in items)
        with self._streams.on():
            rules = [self._rules(item) for item in sampled_items]
            rotation = self._chunks.own_rotation(items)
            bucket = self.graphs.bucket(tokens) if self._chunks.capturable(items) else None
            pages = self._fill(self._args.next(), items, sampled_items, rules, bucket or tokens)
            self._args.send(pages)
        return PrefillPass(items, sampled_items, rules, tokens, bucket, rotation or self._rotation)

    def launch(self, the_pass: PrefillPass) -> None:
        with self._streams.on():
            count = len(the_pass.sampled_items)
            if the_pass.bucket is not None:
                self.graphs.run(the_pass.bucket)
                logits = self._forward.logits[:count]
            else:
                logits = self._launch(the_pass.items, the_pass.tokens, count, the_pass.rotation)
            the_pass.sampled = self._sample(logits, the_pass.sampled_items, the_pass.rules) if count else None
            the_pass.done = torch.cuda.Event()
            the_pass.done.record()
        for each in the_pass.rules:
            self._sampler.forget(each.history)  # the next pass comes after this one on the device

    def wait(self, the_pass: PrefillPass, pulse: Pulse) -> None:
        """Waits until the device has done a pass."""
        assert the_pass.done is not None, "a pass is launched before it is waited for"
        wait_for(the_pass.done, pulse)

    def outcomes(self, the_pass: PrefillPass) -> list[TokenOutcome | None]:
        """Returns what was sampled after each item of a pass that is done; None for the items that are not sampled
        after."""
        if the_pass.sampled is None:
            return [None] * len(the_pass.items)
        tokens, rules = the_pass.sampled.values(), the_pass.rules
        return prompt_outcomes(the_pass.items, tokens, the_pass.sampled.logprobs(rules))

    def logits(self, items: Sequence[PrefillItem]) -> torch.Tensor:
        """Returns the logits [tokens, vocab] after every token, in float32. Waits for the device."""
        tokens = sum(len(item.tokens) for item in items)
        with self._streams.on():
            pages = self._fill(self._args.next(), items, [], [], tokens)
            self._args.send(pages)
            kind = self._forward.logits.dtype
            out = torch.empty((tokens, self._forward.model.vocab_size), dtype=kind, device=self._device)
            rotation = self._chunks.own_rotation(items) or self._rotation
            self._run(tokens, rotation, self._chunks.attention(items, self._args.device), None, out)
            found = out.float()
            self._streams.stream.synchronize()
        return found

    def warm(self) -> None:
        """Compiles and loads what a pass launches, captured or not. It touches no sequence."""
        self._send_padding()
        tokens = min(self._forward.most_tokens, WARM_TOKENS)
        dummy = PrefillItem(0, [0] * tokens, 0, np.zeros(pages_for(tokens), np.int32))
        with self._streams.on():
            self._launch([dummy], tokens, 1, self._rotation)  # reads page 0, and writes nowhere
            args = self._args.device
            self._sampler.sample(self._forward.logits[:1], args["rows"][:1], args, [], self._sampler.fed)
            self._streams.stream.synchronize()

    def _send_padding(self) -> None:
        """Sends launch arguments of padding only, so that what is launched to warm up and to capture touches no
        sequence."""
        host = self._args.next()
        for name in ("tokens", "positions", "wanted", "count", "pages"):
            host[name][:] = 0
        host["slots"][:] = -1
        host["rows"][:] = -1
        with self._streams.on():
            self._args.send()

    # --- launch arguments ------------------------------------------------------------------------------------

    def _fill(
        self,
        host: dict[str, npt.NDArray[Any]],
        items: Sequence[PrefillItem],
        sampled_items: Sequence[PrefillItem],
        rules: Sequence[SamplingRules],
        padded: int,
    ) -> int:
        """Fills the launch arguments for a pass padded to `padded` tokens, and returns how many page numbers it has."""
        pages, lasts = self._chunks.fill(host, items)
        tokens, rows = sum(len(item.tokens) for item in items), len(sampled_items)
        for name, nothing in (("tokens", 0), ("positions", 0), ("slots", -1)):
            host[name][tokens:padded] = nothing
        host["wanted"][:rows] = lasts[:rows]
        host["wanted"][rows:] = 0
        fill_sampling_columns(host, 0, sampled_items, rules)
        return pages

    def _rules(self, item: PrefillItem) -> SamplingRules:
        assert item.sampling is not None
        return SamplingRules(
            item.sampling, self._forward.model.vocab_size, self._device, self._sampler.remember(item.sampling)
        )

    def _sample(
        self, logits: torch.Tensor, sampled_items: Sequence[PrefillItem], rules: Sequence[SamplingRules]
    ) -> PendingTokens:
        args = self._args.device
        special = special_places(sampled_items, rules)
        return self._sampler.sample(logits, args["rows"][: len(sampled_items)], args, special, self._sampler.fed)

    # --- launches -----------------------------------------------------------------------------------------

    def _launch_captured(self, bucket: int) -> None:
        """Launches what is captured: from the launch arguments to the logits of `wanted`."""
        wanted = self._args.device["wanted"][: min(bucket, GRAPH_PROMPTS, self._forward.rows)]
        attend = self._chunks.captured_attention(bucket, self._args.device)
        self._run(bucket, self._rotation, attend, wanted)

    def _launch(self, items: Sequence[PrefillItem], tokens: int, count: int, rotation: Rotation) -> torch.Tensor:
        # One row is computed where nothing is sampled: the last layer has nothing else to do with the others.
        wanted = self._args.device["wanted"][: max(1, count)]
        return self._run(tokens, rotation, self._chunks.attention(items, self._args.device), wanted)

    def _run(
        self,
        tokens: int,
        rotation: Rotation,
        attend: AttendFunction,
        wanted: torch.Tensor | None,
        logits: torch.Tensor | None = None,
    ) -> torch.Tensor:
        args = self._args.device
        inputs = PassInputs(args["tokens"][:tokens], args["positions"][:tokens], args["slots"][:tokens])
        return self._forward.run(inputs, rotation, attend, wanted, logits)
