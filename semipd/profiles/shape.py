"""The shape of a model, as far as its times depend on it, from its config.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from semipd.core.errors import CheckpointError, InputError
from semipd.core.model import ModelConfig, parse_model_config
from semipd.profiles.profile import ModelShape

ITEM_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}
"""Bytes of a number, by its format."""


def read_config(folder: Path) -> tuple[dict[str, Any], ModelConfig]:
    """Returns config.json as it is, and what it says. Raises InputError, naming the file."""
    file = folder / "config.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
        return config, parse_model_config(config)
    except OSError as error:
        raise InputError(f"{file}: can't be read: {error.strerror}") from error
    except (ValueError, CheckpointError) as error:
        raise InputError(f"{file}: {error}") from error


def model_shape(name: str, model: ModelConfig, dtype: str) -> ModelShape:
    """Returns the shape of a model whose weights and KV have this number format, a key of ITEM_BYTES."""
    size = ITEM_BYTES[dtype]
    return ModelShape(
        name=name,
        dtype=dtype,
        vocab_size=model.vocab_size,
        max_context=model.max_context,
        weight_bytes=model.parameters * size,
        kv_token_bytes=2 * model.layers * model.kv_heads * model.head_dim * size,
    )
