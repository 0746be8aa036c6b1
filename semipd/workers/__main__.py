"""A worker process: imports everything, says hello, and waits until it is assigned to prefill or to decode.

The imports take most of the seconds of a start. A spare has spent them before it is needed.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

import structlog

from semipd.core.config import ServerConfig
from semipd.core.model import ModelConfig
from semipd.engine.loading import read_model_config
from semipd.internal.v1 import worker_pb2 as wk
from semipd.memory.account import Holder, Role
from semipd.memory.nvml import survey_driver
from semipd.memory.roles import role_from_wire
from semipd.models import model_directory
from semipd.wire.logging import configure_logging
from semipd.wire.process import EXIT_DEVICE_FAILED, freeze_start_up_objects
from semipd.wire.sockets import RunDir
from semipd.workers.attach import AttachedMemory, attach
from semipd.workers.backend_cpu import CpuBackend
from semipd.workers.coordinator_link import CoordinatorLink
from semipd.workers.decode import DecodeWorker
from semipd.workers.device_failure import is_device_failure
from semipd.workers.prefill import PrefillWorker

log = structlog.get_logger()

ACTIVE_THREADS = "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE"
"""Environment variable of an MPS client: percent of the SMs that it may use."""
FLASHINFER_ARCHITECTURES = "FLASHINFER_CUDA_ARCH_LIST"
"""Environment variable that tells FlashInfer the GPU's architecture."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run-dir", type=Path, required=True)
    parser.add_argument("--incarnation", type=int, required=True)
    given = parser.parse_args()
    config = ServerConfig.from_json(RunDir(given.run_dir).config.read_text())
    configure_logging(config, f"worker.{given.incarnation}")
    if config.device == "cuda":
        import_for_gpu()
    failed = False
    with CoordinatorLink(given.run_dir, given.incarnation) as link:
        try:
            return work(link, config, given.run_dir, given.incarnation)
        except Exception as error:
            log.exception("worker fails")
            link.send(wk.FromWorker(failed=wk.Failed(error=type(error).__name__)))
            failed = is_device_failure(error)
    if failed:
        # Ends at once: what would be freed on the way out is on a device that answers nothing but errors.
        sys.stderr.flush()
        os._exit(EXIT_DEVICE_FAILED)
    return 1


def work(link: CoordinatorLink, config: ServerConfig, run_dir: Path, incarnation: int) -> int:
    link.send(wk.FromWorker(hello=wk.WorkerHello()))
    freeze_start_up_objects()  # most of them: what a spare adds when it is assigned is little
    assignment = wait_for_assignment(link)
    if assignment is None:
        return 0
    me = Holder(role_from_wire(assignment.role), incarnation)
    structlog.contextvars.bind_contextvars(process=f"{me.role.name.lower()}.{incarnation}")
    # CUDA reads the variable when the device is opened, not later. A client that has not the whole device can't make
    # green contexts.
    os.environ.pop(ACTIVE_THREADS, None)
    if assignment.active_thread_percentage:
        os.environ[ACTIVE_THREADS] = str(assignment.active_thread_percentage)
    model = read_model_config(model_directory(config.model))
    with attach(run_dir) as attached:
        worker, ready = open_worker(link, config, model, me, attached, assignment)
        freeze_start_up_objects()
        link.send(wk.FromWorker(ready=ready))
        worker.run()
    return 0


def open_worker(
    link: CoordinatorLink,
    config: ServerConfig,
    model: ModelConfig,
    me: Holder,
    attached: AttachedMemory,
    assignment: wk.Appoint,
) -> tuple[PrefillWorker | DecodeWorker, wk.Ready]:
    """Builds the worker with its engine, on the server's device, and the `Ready` message that it sends then."""
    if config.device == "cuda":
        from semipd.workers.backend_gpu import GpuBackend  # noqa: PLC0415  its packages are not installed without a GPU

        gpu = GpuBackend(link, config, model, me.role, attached, assignment, report_captured)
        ready = wk.Ready(step_rows=gpu.decode_capture_sizes())
        if me.role is Role.DECODE:
            return DecodeWorker(link, gpu.batch(), attached.account, me, gpu, gpu.step_limits), ready
        return PrefillWorker(link, gpu.engine, attached.account, me, gpu), ready
    cpu = CpuBackend(link, model, me.role, attached, assignment)
    if me.role is Role.DECODE:
        batch = cpu.engine.decode_batch(config.max_batch_tokens)
        return DecodeWorker(link, batch, attached.account, me, cpu), wk.Ready()
    return PrefillWorker(link, cpu.engine, attached.account, me, cpu), wk.Ready()


def import_for_gpu() -> None:
    """Imports what takes seconds, so that a spare has done it before it is needed.

    The device is not opened, because its share is not known yet. FlashInfer asks the device for its architecture when
    it is imported, unless the environment tells it.
    """
    gpus = survey_driver().gpus
    if gpus:
        major, minor = gpus[0].capability
        os.environ.setdefault(FLASHINFER_ARCHITECTURES, f"{major}.{minor}{'a' if major >= 9 else ''}")
    import cupy  # noqa: F401, PLC0415  not installed without a GPU

    import semipd.workers.backend_gpu  # noqa: F401, PLC0415
    from semipd.engine.flashinfer_kernels import flashinfer_version  # noqa: PLC0415

    if flashinfer_version() is not None:
        import flashinfer  # noqa: F401, PLC0415


def report_captured(done: int, total: int) -> None:
    """Tells the parent, which shows a progress bar. It reads one JSON object a line."""
    print(json.dumps({"event": "capturing", "done": done, "total": total}), flush=True)


def wait_for_assignment(link: CoordinatorLink) -> wk.Appoint | None:
    """Returns the role and share that the coordinator assigns; None: the worker is told to end instead."""
    while True:
        message = link.receive(wait_s=60.0)
        if message is None:
            continue
        if message.HasField("shutdown"):
            return None
        if message.HasField("appoint"):
            return message.appoint


if __name__ == "__main__":
    sys.exit(main())
