"""The back end of a worker that computes on a GPU: its share is a number of SMs.

The share is read from the control block before each pass.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import structlog
import torch

from semipd.core.config import MIXED_PROMPTS, MIXED_TOKENS, ServerConfig
from semipd.core.model import ModelConfig
from semipd.core.sms import decode_choices, prefill_choices
from semipd.engine.cuda.engine import CudaEngine
from semipd.engine.cuda.streams import SmSide
from semipd.internal.v1 import worker_pb2 as wk
from semipd.memory.account import Role
from semipd.wire.process import sleep_exactly
from semipd.workers.attach import AttachedMemory
from semipd.workers.backend import DecodeBatch
from semipd.workers.coordinator_link import CoordinatorLink
from semipd.workers.mixed_batches import StepLimits
from semipd.workers.turns import OTHER, ControlBlockTurns

log = structlog.get_logger()

REPLACEMENT_BUDGET_S = 0.7
"""Seconds for capturing graphs in a replacement, for which requests wait. It captures the others when it is idle."""
SPARE_BUDGET_S = 0.001
"""Seconds for graphs in one call of `do_spare_work`: enough for one graph, which takes some tens of milliseconds. A
request that comes meanwhile waits no longer than that."""


class GpuBackend:
    """A `Backend` on device 0 of this process, with graphs captured as far as the budget goes."""

    def __init__(
        self,
        link: CoordinatorLink,
        config: ServerConfig,
        model: ModelConfig,
        role: Role,
        attached: AttachedMemory,
        assignment: wk.Appoint,
        progress: Callable[[int, int], None],
    ) -> None:
        """`progress` is told how many graphs are captured, and how many there are."""
        sleep_exactly()
        self._link, self._role, self._control = link, role, attached.control
        total = torch.cuda.get_device_properties(0).multi_processor_count
        choices = decode_choices(total) if role is Role.DECODE else prefill_choices(total)
        self.engine = CudaEngine(
            model,
            attached.weights,
            attached.pool,
            max_batch_tokens=config.max_batch_tokens,
            max_running=config.max_running,
            max_context=model.context_limit(config.max_context),
            side=SmSide.FIRST if role is Role.DECODE else SmSide.LAST,
            sms_choices=choices if config.partition == "green" else (),
        )
        # Under MPS decode keeps its share for life, and so it takes no prompts.
        mixes = role is Role.DECODE and config.partition != "mps"
        self.step_limits = StepLimits(min(config.max_batch_tokens, MIXED_TOKENS), MIXED_PROMPTS) if mixes else None
        self._batch = None
        if role is Role.DECODE:
            self._batch = self.engine.decode_batch(self.step_limits.tokens if self.step_limits else 0)
        opened = self.engine.open_prefill() if self._batch is None else self._batch
        self._capture = opened.capture
        self.turns = ControlBlockTurns(self._control, role)
        self._change = self._control.split().change
        budget_s = REPLACEMENT_BUDGET_S if assignment.replacement else config.capture_budget_s
        start = time.monotonic()
        opened.warm()
        self._capture.run(budget_s, progress)
        captured, total = self._capture.captured, self._capture.total
        log.info("graphs captured", graphs=captured, of=total, seconds=time.monotonic() - start)

    def batch(self) -> DecodeBatch:
        """Returns the decode worker's batch. A prefill worker has none."""
        assert self._batch is not None, "a prefill worker has none"
        return self._batch

    def decode_capture_sizes(self) -> list[int]:
        """Returns the sizes that decode steps are padded to; empty for a worker that makes none."""
        return [] if self._batch is None else self._batch.graphs.useful

    def choose_share(self) -> None:
        """Selects the SMs of the next pass, and tells the coordinator when a new split holds for the first time."""
        self.turns.begin()
        split = self._control.split()
        alone = self._control.turns() or not self._control.busy(OTHER[self._role])
        sms = self.engine.use_sms(0 if alone else split.of(self._role.phase))
        if split.change != self._change:
            self._change = split.change
            delay_s = (time.monotonic_ns() - self._control.decided_ns()) / 1e9
            applied = wk.SharesApplied(change=split.change, delay_s=delay_s, sms=sms)
            self._link.send(wk.FromWorker(shares_applied=applied))

    def set_shares(self, message: wk.SetShares) -> None:
        """Does nothing: shares of a GPU come by the control block, or with the assignment."""

    def has_spare_work(self) -> bool:
        return self._capture.captured < self._capture.total

    def do_spare_work(self) -> None:
        if self.has_spare_work():
            self._capture.run(SPARE_BUDGET_S)
