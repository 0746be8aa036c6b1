"""FlashInfer's attention for long passes: paged keys, causal, planned once and run by every layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from semipd.core.config import PAGE_SIZE, pages_for
from semipd.core.model import ModelConfig
from semipd.engine.cuda.forward import AttendFunction
from semipd.engine.prefill_inputs import PrefillItem

WORKSPACE_BYTES = 128 << 20


class FlashInferPrefill:
    """FlashInfer's prefill attention over the paged KV pool."""

    def __init__(self, model: ModelConfig, device: torch.device, backend: str) -> None:
        """Allocates the workspace. `backend`: "fa3" or "fa2", whose kernel must be compiled already
        (`semipd.engine.flashinfer_kernels`)."""
        from flashinfer import BatchPrefillWithPagedKVCacheWrapper  # noqa: PLC0415  not installed without a GPU

        self._model = model
        workspace = torch.empty(WORKSPACE_BYTES, dtype=torch.uint8, device=device)
        # Two wrappers in turn, because planning a pass writes host memory that the pass before may not have read yet.
        self._wrappers: list[Any] = [
            BatchPrefillWithPagedKVCacheWrapper(workspace, "NHD", backend=backend) for _ in range(2)
        ]
        self._turn = 0

    def plan(self, items: Sequence[PrefillItem], pages: torch.Tensor, pool: torch.Tensor) -> AttendFunction:
        """Plans a pass on the current stream, and returns its attention.

        `pages`: the prompts' page numbers one after another, on the device.
        """
        self._turn ^= 1
        wrapper = self._wrappers[self._turn]
        ends = np.array([item.start + len(item.tokens) for item in items])
        counts = [pages_for(int(end)) for end in ends]
        model = self._model
        wrapper.plan(
            _starts([len(item.tokens) for item in items]),
            _starts(counts),
            pages[: sum(counts)],
            torch.from_numpy(((ends - 1) % PAGE_SIZE + 1).astype(np.int32)),
            model.heads,
            model.kv_heads,
            model.head_dim,
            PAGE_SIZE,
            causal=True,
            q_data_type=pool.dtype,
            kv_data_type=pool.dtype,
        )

        def attend(index: int, queries: torch.Tensor, out: torch.Tensor) -> None:
            wrapper.run(queries, pool[index], out=out)

        return attend


def _starts(counts: Sequence[int]) -> torch.Tensor:
    """Returns [counts + 1] int32: where each part begins, and the end."""
    return torch.from_numpy(np.concatenate(([0], np.cumsum(counts))).astype(np.int32))
