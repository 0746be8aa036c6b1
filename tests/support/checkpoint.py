"""Small random checkpoints in Hugging Face's layout, as transformers saves them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers


def save_llama(folder: Path, **changes: Any) -> Path:
    """A Llama of two layers; random, the same each time."""
    torch.manual_seed(0)
    shape: dict[str, Any] = {
        "vocab_size": 256,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    transformers.LlamaForCausalLM(transformers.LlamaConfig(**{**shape, **changes})).save_pretrained(folder)
    return folder
