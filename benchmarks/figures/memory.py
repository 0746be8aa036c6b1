"""Measures what the device's memory holds beyond weights and KV pool, after a run and idle."""

from __future__ import annotations

import importlib
import time
from typing import Any

from figures.bench import Bench, NeedsGpu, memory_used
from figures.section_results import Page
from semipd.core.model import parse_model_config

BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}
GB = 1e9


def memory(bench: Bench, page: Page) -> None:
    if not bench.gpu:
        raise NeedsGpu("needs a GPU")
    served, admin = bench.server("memory")
    admin.idle(10.0)
    time.sleep(1.0)  # what the last request's end frees
    info = admin.info()
    used, before = memory_used(), bench.memory_before
    assert used is not None
    assert before is not None
    model = parse_model_config(bench.scale.model)
    width = BYTES[model.dtype]
    weights = model.parameters * width
    token = 2 * model.layers * model.kv_heads * model.head_dim * width
    pool = info.total_pages * info.page_size * token
    overhead = used - before - weights - pool  # with the resident's own context, and the MPS server's
    roles = {p.pid: p.role for p in info.processes}
    page.result |= {
        "used_gb": used / GB,
        "used_before_any_server_gb": before / GB,
        "weights_gb": weights / GB,
        "pool_gb": pool / GB,
        "pool_tokens": info.total_pages * info.page_size,
        "overhead_gb": overhead / GB,
        "processes": [
            {"pid": pid, "role": roles.get(pid, "other"), "used_gb": bytes_ and bytes_ / GB}
            for pid, bytes_ in by_process()
        ],
        "server_started_in_s": served.started_in_s,
    }
    workers = [p["used_gb"] for p in page.result["processes"] if p["role"] in ("prefill", "decode")]
    if len(workers) == 2 and all(workers):
        page.figures["memory_workers_gb"] = sum(workers)


def by_process() -> list[tuple[int, Any]]:
    """(process id, bytes) as NVML tells them; under MPS it may know less."""
    nvml = importlib.import_module("pynvml")
    nvml.nvmlInit()
    try:
        card = nvml.nvmlDeviceGetHandleByIndex(0)
        found = nvml.nvmlDeviceGetComputeRunningProcesses(card)
        return sorted({(p.pid, p.usedGpuMemory) for p in found})
    except nvml.NVMLError:
        return []
    finally:
        nvml.nvmlShutdown()
