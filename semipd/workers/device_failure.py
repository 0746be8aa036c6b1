"""Telling a device that has failed from everything else that can go wrong in a worker."""

from __future__ import annotations

import torch

SIGNS = ("CUDA error", "[CUDA]", "CUBLAS_STATUS", "cudaError", "CUDA driver error")
"""How torch, Triton, cuBLAS and CuPy begin to say it."""


def is_device_failure(error: BaseException) -> bool:
    """Whether nothing more can be computed in this process. Memory that has run out is no such failure."""
    if isinstance(error, torch.OutOfMemoryError):
        return False
    return isinstance(error, torch.AcceleratorError) or any(sign in str(error) for sign in SIGNS)
