"""Tells a device that has failed from everything else that can go wrong in a worker."""

from __future__ import annotations

import torch

SIGNS = ("CUDA error", "[CUDA]", "CUBLAS_STATUS", "cudaError", "CUDA driver error")
"""Parts of the messages of torch, Triton, cuBLAS and CuPy about a device that has failed."""


def is_device_failure(error: BaseException) -> bool:
    """Returns whether nothing more can be computed in this process. Memory that has run out is no such failure."""
    if isinstance(error, torch.OutOfMemoryError):
        return False
    return isinstance(error, torch.AcceleratorError) or any(sign in str(error) for sign in SIGNS)
