"""Triton kernels of our own, each file with the function that launches it.

Sizes that never change are compile-time constants and sizes that do are read from device memory, so that nothing is
compiled while requests wait and every launch can be captured in a CUDA graph.
"""
