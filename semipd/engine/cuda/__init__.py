"""The engine on a GPU: Triton and FlashInfer kernels, torch GEMMs, CUDA graphs, green contexts."""
