"""Kernels run here in Triton's interpreter, on the CPU: slow, and the same code."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

pytest.importorskip("triton")
interpreter = pytest.importorskip("triton.runtime.interpreter")

_patch_tensor = interpreter._patch_lang_tensor


def _patch_tensor_for_new_numpy(tensor: Any, scope: Any) -> None:
    """The interpreter of Triton 3.6 makes an int of an array of one element, which NumPy 2.4 refuses."""
    _patch_tensor(tensor, scope)
    scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.reshape(-1)[0]))


interpreter._patch_lang_tensor = _patch_tensor_for_new_numpy


@pytest.fixture
def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
