"""Tiny random checkpoints as transformers writes them, and a server's memory in miniature around the engine."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from support.engine_rig import EngineRig, MakeRig
from support.families import FAMILIES, random_model
from support.wish import Wish

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """The directory of a family's checkpoint, written once a session."""
    written: dict[str, Path] = {}

    def write(family: str = "llama") -> Path:
        if family not in written:
            written[family] = tmp_path_factory.mktemp("checkpoint")
            random_model(family).save_pretrained(written[family])
        return written[family]

    return write


@pytest.fixture
def rig(checkpoint: Callable[..., Path]) -> MakeRig:
    def make(family: str = "llama", **options: Any) -> EngineRig:
        return EngineRig(checkpoint(family), **options)

    return make


@pytest.fixture
def wish() -> type[Wish]:
    return Wish


@pytest.fixture(params=list(FAMILIES))
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)
