"""The engine for GPUs: the interface of `semipd.engine.engine`, with streams, graphs and passes ahead."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import structlog
import torch

from semipd.core.config import MIXED_PROMPTS, pages_for
from semipd.core.model import ModelConfig
from semipd.engine.cuda.chunks import GRAPH_PROMPTS, PrefillChunks
from semipd.engine.cuda.decode import CudaDecodeBatch
from semipd.engine.cuda.flashinfer import FlashInferPrefill
from semipd.engine.cuda.forward import ForwardPass, rotation_table
from semipd.engine.cuda.prefill import CudaPrefill
from semipd.engine.cuda.streams import SmSide, Streams
from semipd.engine.flashinfer_kernels import Kernel, KernelError, load, ready_kernel
from semipd.engine.prefill_inputs import PrefillItem
from semipd.engine.pulse import Pulse
from semipd.engine.rope import Rotary
from semipd.engine.sampling_result import TokenOutcome

log = structlog.get_logger()

MOST_SAMPLED = 128
"""The most prompts that one pass samples after. A batch with more takes several passes."""


class CudaEngine:
    """Computes on the device of its tensors. Only one thread may use it at a time.

    A worker uses one side: prefill, or `decode_batch`. Buffers are allocated for what is used.
    """

    passes_ahead = 1

    def __init__(
        self,
        model: ModelConfig,
        weights: Mapping[str, torch.Tensor],
        pool: torch.Tensor,
        *,
        max_batch_tokens: int,
        max_running: int,
        max_context: int,
        side: SmSide = SmSide.FIRST,
        sms_choices: Iterable[int] = (),
    ) -> None:
        """Takes weights and pool. `sms_choices`: numbers of SMs, at `side` of the device, that `use_sms` can select
        besides all.

        Raises ValueError where a tensor has another shape, RuntimeError where the device has no green contexts.
        """
        self._model, self._weights, self._pool = model, weights, pool
        self._max_batch_tokens, self._max_running, self._max_context = max_batch_tokens, max_running, max_context
        self.streams = Streams(pool.device, side, list(sms_choices), urgent=side is SmSide.FIRST)
        self._rotation = rotation_table(model, max_context + 1, pool.device)
        self._prefill: CudaPrefill | None = None
        ForwardPass(model, weights, pool, 1, 1)  # checks the tensors now, not at the first request
        # Everything above was made on torch's own stream, which nothing else waits for.
        torch.cuda.synchronize(pool.device)

    @property
    def pages(self) -> int:
        """The number of pages in the pool."""
        return self._pool.shape[1]

    @property
    def vocab_size(self) -> int:
        return self._model.vocab_size

    @property
    def max_context(self) -> int:
        """The most tokens of a sequence."""
        return self._max_context

    # --- SMs --------------------------------------------------------------------------------------------------------

    def sms_choices(self) -> tuple[int, ...]:
        return self.streams.choices()

    def use_sms(self, sms: int) -> int:
        """Selects the nearest available number of SMs (0: all) for what is launched from now on, and returns it."""
        chosen = self.streams.nearest(sms)
        self.streams.use(chosen)
        return chosen

    # --- prefill ----------------------------------------------------------------------------------------------------

    def prefill(self, items: Sequence[PrefillItem], pulse: Pulse) -> list[TokenOutcome | None]:
        """Does what `CpuEngine.prefill` does: begins, and waits."""
        return self.begin_prefill(items).finish(pulse)

    def begin_prefill(self, items: Sequence[PrefillItem]) -> CudaPendingPrefill:
        """Launches the chunks and returns at once. One batch may be begun while another is not finished, not more."""
        pending = self.prepare_prefill(items)
        pending.launch()
        return pending

    def prepare_prefill(self, items: Sequence[PrefillItem]) -> CudaPendingPrefill:
        """Does what can be done before the device is free. The batch must be launched before another is prepared."""
        return CudaPendingPrefill(self.open_prefill(), list(self._parts(items)))

    def logits(self, items: Sequence[PrefillItem]) -> torch.Tensor:
        """Returns the logits [tokens, vocab] float32 after each token of the items (teacher forcing)."""
        return self.open_prefill().logits(items)

    def open_prefill(self) -> CudaPrefill:
        if self._prefill is None:
            tokens = self._max_batch_tokens
            forward = ForwardPass(self._model, self._weights, self._pool, tokens, min(MOST_SAMPLED, tokens))
            # Each prompt of a pass may have one token only; few can be long.
            pages = tokens * 2 + GRAPH_PROMPTS * self._widest
            chunks = self._chunks(forward, tokens, tokens, pages)
            self._prefill = CudaPrefill(forward, self._rotation, chunks, self.streams)
            torch.cuda.synchronize(self._pool.device)
        return self._prefill

    @property
    def _widest(self) -> int:
        """The most pages of a sequence."""
        return pages_for(self._max_context) + 1

    def _chunks(self, forward: ForwardPass, tokens: int, prompts: int, pages: int) -> PrefillChunks:
        model, pool = self._model, self._pool
        rotary = Rotary(model.rope, model.head_dim, model.max_position_embeddings, torch.empty(0))
        capability = torch.cuda.get_device_capability(pool.device)
        flashinfer = None
        kernel = ready_kernel(model, str(pool.dtype).removeprefix("torch."), capability)
        if kernel is not None:
            flashinfer = self._flashinfer(kernel, capability)
        return PrefillChunks(forward, rotary, flashinfer, tokens, prompts, pages)

    def _flashinfer(self, kernel: Kernel, capability: tuple[int, int]) -> FlashInferPrefill | None:
        """Returns FlashInfer's attention; None: its kernel can't be loaded, and our own is used."""
        try:
            load(kernel, capability)
        except KernelError as error:
            log.warning("long prompts are slower than they could be", why=str(error))
            return None
        return FlashInferPrefill(self._model, self._pool.device, kernel.backend)

    def _parts(self, items: Sequence[PrefillItem]) -> Iterable[list[PrefillItem]]:
        """Yields the items of each pass. A pass ends where it would have more prompts, tokens or pages than its buffers
        hold."""
        most_prompts, most_pages = min(MOST_SAMPLED, self._max_batch_tokens), self.open_prefill().most_pages
        part: list[PrefillItem] = []
        tokens = pages = 0
        for item in items:
            more = pages_for(item.start + len(item.tokens))
            tokens, pages = tokens + len(item.tokens), pages + more
            if part and (len(part) == most_prompts or tokens > self._max_batch_tokens or pages > most_pages):
                yield part
                part, tokens, pages = [], len(item.tokens), more
            part.append(item)
        if part:
            yield part

    # --- decode -----------------------------------------------------------------------------------------------------

    def decode_batch(self, prompt_tokens: int = 0) -> CudaDecodeBatch:
        """Returns an empty batch. A worker has one. `prompt_tokens`: the most prompt tokens of a step; 0: it takes
        none."""
        rows = self._max_running
        prompts = min(MIXED_PROMPTS, prompt_tokens)
        forward = ForwardPass(self._model, self._weights, self._pool, rows + prompt_tokens, rows + prompts)
        chunks = self._chunks(forward, prompt_tokens, prompts, prompts * self._widest) if prompts else None
        batch = CudaDecodeBatch(forward, self._rotation, self.streams, rows, self._max_context, chunks)
        torch.cuda.synchronize(self._pool.device)
        return batch


class CudaPendingPrefill:
    """Chunks that the device knows of. Those that are too many for one pass take several."""

    def __init__(self, prefill: CudaPrefill, parts: Sequence[Sequence[PrefillItem]]) -> None:
        self._prefill = prefill
        self._parts = parts
        self._passes = [prefill.prepare(part) for part in parts[:1]]

    def launch(self) -> None:
        for number, part in enumerate(self._parts):
            if number:
                self._passes.append(self._prefill.prepare(part))
            self._prefill.launch(self._passes[number])

    def finish(self, pulse: Pulse, on_computed: Callable[[], None] = lambda: None) -> list[TokenOutcome | None]:
        outcomes: list[TokenOutcome | None] = []
        for each in self._passes:
            self._prefill.wait(each, pulse)
            if each is self._passes[-1]:
                on_computed()
            outcomes += self._prefill.outcomes(each)
        return outcomes
