"""Tests of the GPU engine: `make test-gpu` on a machine with a GPU.

SEMIPD_GPU_TESTS_ON=cpu runs those that only need an engine on the CPU's engine instead, behind the same doors: that
tries the tests themselves.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from support.device_rig import Rig
from support.families import FAMILIES, random_model

ON_CPU = os.environ.get("SEMIPD_GPU_TESTS_ON") == "cpu"

SHAPE: dict[str, Any] = {
    "vocab_size": 515,
    "hidden_size": 256,
    "intermediate_size": 384,
    "initializer_range": 0.12,
    "head_dim": 64,
}
"""Nearer to what GPU kernels are made for than the families' own."""
SHAPES: dict[str, dict[str, Any]] = {
    "llama, biases and explicit head_dim": {"head_dim": 96},
    "llama, head_dim 128": {"head_dim": 128},
    "qwen3": {"head_dim": 128},
}
GPU_FAMILIES = (*FAMILIES, "llama, head_dim 128")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("gpu") is None or Path(__file__).parent not in item.path.parents:
            continue
        if ON_CPU and "device" not in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.skip(reason="needs a GPU, not just an engine"))
        elif not ON_CPU and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="no GPU"))


@pytest.fixture(scope="session")
def device() -> torch.device:
    torch.set_num_threads(1)  # what is computed on the CPU is tiny
    torch.set_float32_matmul_precision("highest")  # no TF32: float32 is compared token for token
    return torch.device("cpu" if ON_CPU else "cuda")


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """The directory of a family's checkpoint, written once a session. Weights are bfloat16, so that no type rounds."""
    written: dict[str, Path] = {}

    def write(family: str = "llama", **changes: Any) -> Path:
        key = f"{family} {sorted(changes.items())}"
        if key not in written:
            written[key] = tmp_path_factory.mktemp("checkpoint")
            kind = family if family in FAMILIES else "llama"
            model = random_model(kind, **{**SHAPE, **SHAPES.get(family, {}), **changes})
            model.to(torch.bfloat16).save_pretrained(written[key])
        return written[key]

    return write


@pytest.fixture
def rig(checkpoint: Callable[..., Path], device: torch.device) -> Iterator[Callable[..., Rig]]:
    """Makes rigs; `changes` are the checkpoint's, other options the rig's."""
    made: list[Rig] = []

    def make(
        family: str = "llama", dtype: torch.dtype = torch.float32, changes: dict[str, Any] | None = None, **options: Any
    ) -> Rig:
        made.append(Rig(checkpoint(family, **(changes or {})), device, dtype, **options))
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.fixture(params=GPU_FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)
