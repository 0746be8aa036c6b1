"""Triton kernels of our own. Each is in one file with the function that launches it.

Sizes that never change are compile-time constants. Sizes that change are read from device memory, so that nothing is
compiled while requests wait, and every launch can be captured in a CUDA graph.
"""
