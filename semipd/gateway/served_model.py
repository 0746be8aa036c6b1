"""The served model as the gateway needs to know it: names, limits and files. It is read once, without torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from semipd.core.config import ServerConfig
from semipd.core.errors import CheckpointError, ConfigError
from semipd.core.fields import Fields
from semipd.core.model import parse_eos_token_ids, parse_model_config
from semipd.models import model_directory


@dataclass(frozen=True, slots=True)
class ServedModel:
    """The one model of this server."""

    name: str
    directory: Path
    architecture: str
    dtype: str
    parameters: int
    vocab_size: int
    max_context: int
    """Prompt and output together, in tokens."""
    eos_token_ids: tuple[int, ...]


def read_served_model(config: ServerConfig) -> ServedModel:
    """Reads the model's folder. Raises ConfigError if there is no such model, CheckpointError if it can't be served."""
    directory = model_directory(config.model).resolve()
    if not (directory / "config.json").is_file():
        raise ConfigError(f"--model: {directory} holds no config.json")
    model = parse_model_config(read_json(directory / "config.json"))
    own = model.dtype if config.device == "cuda" else "float32"
    return ServedModel(
        name=config.served_model_name or directory.name,
        directory=directory,
        architecture=model.architecture,
        dtype=own if config.dtype == "auto" else config.dtype,
        parameters=model.parameters,
        vocab_size=model.vocab_size,
        max_context=model.context_limit(config.max_context),
        eos_token_ids=_eos_token_ids(directory, model.eos_token_ids, model.vocab_size),
    )


def _eos_token_ids(directory: Path, declared: tuple[int, ...], vocab_size: int) -> tuple[int, ...]:
    """Returns the tokens that end a sequence. generation_config.json has the last word, as in transformers: chat models
    name there the tokens that end a turn."""
    path = directory / "generation_config.json"
    generation = parse_eos_token_ids(Fields(read_json(path), path.name)) if path.is_file() else ()
    return tuple(i for i in generation or declared if i < vocab_size)


def read_json(path: Path) -> Mapping[str, Any]:
    """Reads a JSON object from a file of the checkpoint. Raises CheckpointError, naming the file."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path.name}: cannot be read: {error}") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path.name}: holds no JSON object")
    return values
