"""Fills weights from a Hugging Face directory, or at random. Reads JSON and safetensors alone: nothing is executed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from semipd.core.errors import CheckpointError
from semipd.core.fields import Fields
from semipd.core.model import ModelConfig, parse_eos_token_ids, parse_model_config
from semipd.engine.layout import EMBED
from semipd.engine.naming import NOT_A_WEIGHT, TIED_HEAD, Target, targets

CONFIG = "config.json"
GENERATION_CONFIG = "generation_config.json"
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
FLOATS = (torch.float32, torch.bfloat16, torch.float16)

Progress = Callable[[int, int], None]
"""Told of bytes read and bytes in all."""


def read_model_config(directory: Path) -> ModelConfig:
    """From config.json; end-of-sequence tokens from generation_config.json where it names any, as transformers does.

    Raises CheckpointError.
    """
    model = parse_model_config(_read_json(directory / CONFIG))
    generation = directory / GENERATION_CONFIG
    if generation.exists():
        eos = parse_eos_token_ids(Fields(_read_json(generation), GENERATION_CONFIG))
        model = replace(model, eos_token_ids=eos or model.eos_token_ids)
    outside = [i for i in model.eos_token_ids if i >= model.vocab_size]
    if outside:
        raise CheckpointError(f"{CONFIG}: eos_token_id = {outside[0]}; the vocabulary has {model.vocab_size} tokens")
    return model


def load_checkpoint(directory: Path, model: ModelConfig, into: Mapping[str, torch.Tensor], progress: Progress) -> None:
    """Copies every weight to its place in `into` (see `weight_layout`), converted to the types there.

    Raises CheckpointError, naming file and tensor, for weights that are missing, unknown, twice there, of a wrong shape
    or type, or not finite, and for files that cannot be read. What `into` holds is then undefined.
    """
    wanted = targets(model)
    with ExitStack() as opened, torch.inference_mode():
        shards = [_Shard(opened, directory / name) for name in weight_files(directory)]
        _check_names(shards, wanted, model)
        total = sum(shard.path.stat().st_size for shard in shards)
        done = 0
        progress(done, total)
        for shard in shards:
            for name in shard.names:
                if name in wanted:
                    done += _copy(shard, name, wanted[name], into)
                    progress(done, total)
        if model.tied_embeddings:
            _check_tied(shards, into)
        progress(total, total)


def weight_files(directory: Path) -> list[str]:
    """Names within the directory: the one file, or the shards that the index names."""
    if (directory / SINGLE).exists():
        return [SINGLE]
    index = directory / INDEX
    if not index.exists():
        raise CheckpointError(f"{directory}: there is no {SINGLE} and no {INDEX}; only safetensors can be loaded")
    files = _read_json(index).get("weight_map")
    if not isinstance(files, dict) or not files:
        raise CheckpointError(f"{INDEX}: weight_map must name the file of each tensor")
    names = sorted({str(name) for name in files.values()})
    for name in names:
        if Path(name).name != name:
            raise CheckpointError(f"{INDEX}: weight_map names {name!r}; a shard lies in the model directory itself")
    return names


def fill_dummy(model: ModelConfig, into: Mapping[str, torch.Tensor], seed: int) -> None:
    """Random weights that keep activations at the scale of trained ones; the same for the same seed.

    One block of random numbers is repeated, so that billions of weights take seconds. Its length is prime, so that no
    two rows of a projection are alike.
    """
    block = torch.randn(1_048_573, generator=torch.Generator().manual_seed(seed))
    place = 0
    for name, tensor in into.items():
        flat = tensor.view(-1)
        if name.endswith("norm"):
            flat.fill_(1.0)
            continue
        # A projection of [out, in] keeps its input's variance; what is added to the residual adds less, the deeper.
        scale = tensor.shape[-1] ** -0.5 if tensor.dim() == 2 else 0.02
        if name.endswith((".o", ".down")):
            scale *= (2 * model.layers) ** -0.5
        done = 0
        while done < len(flat):
            part = block[place : place + len(flat) - done] * scale
            flat[done : done + len(part)] = part
            done += len(part)
            place = (place + len(part)) % len(block)


class _Shard:
    """An open safetensors file."""

    def __init__(self, opened: ExitStack, path: Path) -> None:
        self.path = path
        try:
            self._file = opened.enter_context(safe_open(path, framework="pt"))
            self.names: list[str] = sorted(self._file.keys())
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{path.name}: cannot be read as safetensors: {error}") from error

    def tensor(self, name: str) -> torch.Tensor:
        try:
            read: torch.Tensor = self._file.get_tensor(name)
        except (OSError, SafetensorError, RuntimeError) as error:
            raise CheckpointError(f"{self.path.name}: {name} cannot be read: {error}") from error
        return read


def _check_names(shards: list[_Shard], wanted: Mapping[str, Target], model: ModelConfig) -> None:
    where: dict[str, str] = {}
    for name, file in _named(shards):
        if name in where:
            raise CheckpointError(f"{file}: {name} is in {where[name]} too")
        where[name] = file
        known = name in wanted or NOT_A_WEIGHT.search(name) or (model.tied_embeddings and name == TIED_HEAD)
        if not known:
            raise CheckpointError(f"{file}: {name} is no weight of a {model.architecture} as config.json describes it")
    missing = [name for name in wanted if name not in where]
    if missing:
        files = ", ".join(shard.path.name for shard in shards)
        more = f", and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise CheckpointError(f"{files}: {missing[0]} is missing{more}")


def _named(shards: list[_Shard]) -> Iterator[tuple[str, str]]:
    for shard in shards:
        for name in shard.names:
            yield name, shard.path.name


def _copy(shard: _Shard, name: str, target: Target, into: Mapping[str, torch.Tensor]) -> int:
    """The bytes read."""
    rows = into[target.name][target.first : target.first + target.rows]
    read = shard.tensor(name)
    if read.shape != rows.shape:
        raise CheckpointError(f"{shard.path.name}: {name} has shape {list(read.shape)}, not {list(rows.shape)}")
    if read.dtype not in FLOATS:
        raise CheckpointError(f"{shard.path.name}: {name} is of type {read.dtype}; supported: {FLOATS}")
    rows.copy_(read)
    if not torch.isfinite(rows).all():
        raise CheckpointError(f"{shard.path.name}: {name} holds numbers that are not finite in {rows.dtype}")
    return read.nbytes


def _check_tied(shards: list[_Shard], into: Mapping[str, torch.Tensor]) -> None:
    """A head that is stored though it is tied must be the embedding, or config.json is wrong."""
    for shard in shards:
        if TIED_HEAD not in shard.names:
            continue
        head, embed = shard.tensor(TIED_HEAD), into[EMBED]
        if head.shape != embed.shape or not torch.equal(head.to(embed.dtype), embed):
            raise CheckpointError(
                f"{shard.path.name}: {TIED_HEAD} differs from the embedding; {CONFIG} has tie_word_embeddings = true"
            )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror}") from error
    except ValueError as error:
        raise CheckpointError(f"{path}: not JSON: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: not a JSON object")
    return value
