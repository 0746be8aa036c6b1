"""Decides how large the KV pool is."""

from __future__ import annotations

from math import prod

from semipd.core.config import GPU_RESERVE_BYTES, PAGE_SIZE, ServerConfig, pages_for
from semipd.core.errors import ConfigError, StartError
from semipd.core.model import ModelConfig

SHARE_OF_MEMORY = 0.5
"""Fraction of a CPU machine's available memory that the pool takes at most by default: other programs need memory
too."""


def pool_pages(config: ServerConfig, model: ModelConfig, item_bytes: int, available_bytes: int) -> int:
    """Returns the number of pages in the pool.

    It is `--kv-pages`, else it follows from `--kv-memory-gb`, else it is the lesser of what can be used and what can be
    spared. `available_bytes`: free memory of the device, with the weights already there. On a GPU all but
    GPU_RESERVE_BYTES of it can be spared, on a CPU SHARE_OF_MEMORY.

    Raises ConfigError where that is too little for one sequence of the longest context, and StartError where the
    memory is not there.
    """
    page_bytes = prod((model.layers, 2, PAGE_SIZE, model.kv_heads, model.head_dim)) * item_bytes
    one_context = pages_for(model.context_limit(config.max_context))
    if config.kv_pages:
        pages, asked = config.kv_pages, f"--kv-pages {config.kv_pages}"
    elif config.kv_memory_gb:
        pages, asked = int(config.kv_memory_gb * 1e9 / page_bytes), f"--kv-memory-gb {config.kv_memory_gb:g}"
    else:
        usable = one_context * config.max_running
        spare, of_what = _spare(config, available_bytes)
        pages = min(usable, int(spare / page_bytes))
        if pages < one_context:
            raise StartError(
                f"{of_what} leave room for {pages} pages of KV, and one context of {one_context * PAGE_SIZE} tokens "
                f"needs {one_context}; lower --max-context"
            )
        return pages
    if pages < one_context:
        raise ConfigError(
            f"{asked}: {pages} pages of {PAGE_SIZE} tokens, and one context of {one_context * PAGE_SIZE} tokens needs "
            f"{one_context}; give more, or lower --max-context"
        )
    return pages


def _spare(config: ServerConfig, available_bytes: int) -> tuple[float, str]:
    """Returns the bytes that the pool may have, and words for the memory that they are taken from."""
    if config.device != "cuda":
        return SHARE_OF_MEMORY * available_bytes, f"{available_bytes / 1e9:.1f} GB of available memory"
    return (
        max(0, available_bytes - GPU_RESERVE_BYTES),
        f"{available_bytes / 1e9:.1f} GB of free GPU memory, less {GPU_RESERVE_BYTES / 1e9:g} GB for the workers,",
    )
