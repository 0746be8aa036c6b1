"""Fills weights from a Hugging Face directory, or at random. Reads JSON and safetensors alone: nothing is executed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from semipd.core.errors import CheckpointError
from semipd.core.fields import Fields
from semipd.core.model import ModelConfig, parse_eos_token_ids, parse_model_config
from semipd.engine.checkpoint_mapping import NOT_A_WEIGHT, TIED_HEAD, WeightTarget, weight_targets
from semipd.engine.layout import EMBED
from semipd.engine.shards import Shard, StoredTensor
from semipd.engine.staging import FileSpan, ReadFailed, Staging

CONFIG = "config.json"
GENERATION_CONFIG = "generation_config.json"
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
FLOATS = (torch.float32, torch.bfloat16, torch.float16)

LoadProgress = Callable[[int, int], None]
"""A function that is told the bytes read so far and the bytes in all."""


def read_model_config(directory: Path) -> ModelConfig:
    """Reads config.json, and the end-of-sequence tokens from generation_config.json where it names any.

    transformers does the same. Raises CheckpointError.
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


def load_checkpoint(
    directory: Path,
    model: ModelConfig,
    into: Mapping[str, torch.Tensor],
    progress: LoadProgress,
    staging: Staging | None = None,
) -> None:
    """Copies every weight to its place in `into` (see `weight_layout`), converted to the types there.

    `staging`: buffers for the device of `into`. Files are then read several pieces at a time, straight into the
    buffers, which is best for a GPU. None: `into` is on the CPU.

    Raises CheckpointError, naming file and tensor, for weights that are missing, unknown, there twice, of a wrong shape
    or type, or not finite, and for files that cannot be read. What `into` holds is then undefined.
    """
    wanted = weight_targets(model)
    with ExitStack() as opened, torch.inference_mode():
        shards = [Shard(opened, directory / name) for name in weight_files(directory)]
        _check_names(shards, wanted, model)
        total = sum(shard.path.stat().st_size for shard in shards)
        progress(0, total)
        if staging is None:
            _copy_all(shards, wanted, into, lambda done: progress(done, total))
            if model.tied_embeddings:
                _check_tied(shards, into)
        else:
            parts = [part for shard in shards for part in _parts_of(shard, wanted, into, opened, staging)]
            if model.tied_embeddings:  # last, because the embedding must be there
                parts += [part for shard in shards for part in _tied_parts_of(shard, into, opened, staging)]
            _stream_all(parts, staging, lambda done: progress(done, total))
        progress(total, total)


def weight_files(directory: Path) -> list[str]:
    """Returns the names of the files with weights: the one file, or the shards that the index names."""
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
    """Fills in random weights that keep activations at the scale of trained ones.

    They are the same for the same seed, on any device.
    One block of random numbers is repeated, so that billions of weights take seconds. Its length is prime, so that no
    two rows of a projection are alike.
    """
    device = next(iter(into.values())).device
    block = torch.randn(1_048_573, generator=torch.Generator().manual_seed(seed)).to(device)
    place = 0
    for name, tensor in into.items():
        flat = tensor.view(-1)
        if name.endswith("norm"):
            flat.fill_(1.0)
            continue
        # A projection [out, in] keeps its input's variance. The deeper the model, the less each layer adds to the
        # residual.
        scale = tensor.shape[-1] ** -0.5 if tensor.dim() == 2 else 0.02
        if name.endswith((".o", ".down")):
            scale *= (2 * model.layers) ** -0.5
        done = 0
        while done < len(flat):
            part = block[place : place + len(flat) - done] * scale
            flat[done : done + len(part)] = part
            done += len(part)
            place = (place + len(part)) % len(block)


def _check_names(shards: list[Shard], wanted: Mapping[str, WeightTarget], model: ModelConfig) -> None:
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


def _named(shards: list[Shard]) -> Iterator[tuple[str, str]]:
    for shard in shards:
        for name in shard.names:
            yield name, shard.path.name


def _copy_all(
    shards: list[Shard],
    wanted: Mapping[str, WeightTarget],
    into: Mapping[str, torch.Tensor],
    progress: Callable[[int], None],
) -> None:
    done = 0
    for shard in shards:
        for name in shard.names:
            if name in wanted:
                done += _copy(shard, name, wanted[name], into)
                progress(done)


def _copy(shard: Shard, name: str, target: WeightTarget, into: Mapping[str, torch.Tensor]) -> int:
    """Copies a tensor to its place, and returns the bytes read."""
    rows = _rows(target, into)
    read = shard.tensor(name)
    _check_kind(shard, name, tuple(read.shape), read.dtype, rows)
    rows.copy_(read)
    if not torch.isfinite(rows).all():
        raise _not_finite(shard, name, rows)
    return read.nbytes


def _rows(target: WeightTarget, into: Mapping[str, torch.Tensor]) -> torch.Tensor:
    return into[target.name][target.first : target.first + target.rows]


def _check_kind(shard: Shard, name: str, shape: tuple[int, ...], dtype: torch.dtype | str, rows: torch.Tensor) -> None:
    if shape != rows.shape:
        raise CheckpointError(f"{shard.path.name}: {name} has shape {list(shape)}, not {list(rows.shape)}")
    if dtype not in FLOATS:
        raise CheckpointError(f"{shard.path.name}: {name} is of type {dtype}; supported: {FLOATS}")


def _not_finite(shard: Shard, name: str, rows: torch.Tensor) -> CheckpointError:
    return CheckpointError(f"{shard.path.name}: {name} holds numbers that are not finite in {rows.dtype}")


def _check_tied(shards: list[Shard], into: Mapping[str, torch.Tensor]) -> None:
    """Checks that a head that is stored although it is tied equals the embedding; else config.json is wrong."""
    for shard in shards:
        if TIED_HEAD not in shard.names:
            continue
        head, embed = shard.tensor(TIED_HEAD), into[EMBED]
        if head.shape != embed.shape or not torch.equal(head.to(embed.dtype), embed):
            raise _differs(shard)


def _differs(shard: Shard) -> CheckpointError:
    return CheckpointError(
        f"{shard.path.name}: {TIED_HEAD} differs from the embedding; {CONFIG} has tie_word_embeddings = true"
    )


@dataclass(frozen=True, slots=True)
class _WeightPart:
    """A piece of a stored tensor, and the numbers of ours that it fills, or must equal."""

    shard: Shard
    name: str
    dtype: torch.dtype
    span: FileSpan
    ours: torch.Tensor
    """The numbers of our tensor, [numbers]."""
    fills: bool = True

    def take(self, stored: torch.Tensor) -> torch.Tensor:
        """Copies or compares the part, and returns a flag on the device of `ours`: whether all is well.

        `stored`: the part's bytes, on that device.
        """
        numbers = stored.view(self.dtype)
        if not self.fills:
            return (numbers.to(self.ours.dtype) == self.ours).all()
        self.ours.copy_(numbers)
        return torch.isfinite(self.ours).all()

    def complaint(self) -> CheckpointError:
        """Returns the error to raise where that flag is false."""
        return _not_finite(self.shard, self.name, self.ours) if self.fills else _differs(self.shard)


def _parts_of(
    shard: Shard,
    wanted: Mapping[str, WeightTarget],
    into: Mapping[str, torch.Tensor],
    opened: ExitStack,
    staging: Staging,
) -> Iterator[_WeightPart]:
    """Yields the parts of all weights of a shard, and checks types and shapes."""
    stored = shard.stored(opened)
    for name in shard.names:
        if name in wanted:
            rows, found = _rows(wanted[name], into), stored[name]
            _check_kind(shard, name, found.shape, found.dtype, rows)
            yield from _cut(shard, name, found, rows, staging, fills=True)


def _tied_parts_of(
    shard: Shard, into: Mapping[str, torch.Tensor], opened: ExitStack, staging: Staging
) -> Iterator[_WeightPart]:
    """Yields the parts of a stored head that must equal the embedding."""
    if TIED_HEAD in shard.names:
        found = shard.stored(opened)[TIED_HEAD]
        if found.shape != into[EMBED].shape or isinstance(found.dtype, str):
            raise _differs(shard)
        yield from _cut(shard, TIED_HEAD, found, into[EMBED], staging, fills=False)


def _cut(
    shard: Shard, name: str, stored: StoredTensor, ours: torch.Tensor, staging: Staging, *, fills: bool
) -> Iterator[_WeightPart]:
    """Yields the pieces of a tensor, each of which fits a buffer."""
    assert isinstance(stored.dtype, torch.dtype)
    flat, size = ours.view(-1), stored.dtype.itemsize
    numbers = staging.buffer_bytes // size
    for first in range(0, len(flat), numbers):
        piece = flat[first : first + numbers]
        span = FileSpan(stored.fd, stored.offset + first * size, len(piece) * size)
        yield _WeightPart(shard, name, stored.dtype, span, piece, fills)


def _stream_all(parts: list[_WeightPart], staging: Staging, progress: Callable[[int], None]) -> None:
    """Streams all parts.

    Each check leaves a flag on the device. The flags are read at the end, so that nothing waits for them on the way.
    """
    well = torch.ones(len(parts), dtype=torch.bool, device=staging.device)
    done = 0

    def deliver(index: int, there: torch.Tensor) -> None:
        nonlocal done
        well[index] = parts[index].take(there)
        done += parts[index].span.bytes
        progress(done)

    try:
        staging.stream([part.span for part in parts], deliver)
    except ReadFailed as error:
        part = parts[error.index]
        raise CheckpointError(f"{part.shard.path.name}: {part.name} cannot be read: {error}") from error
    for part, flag in zip(parts, well.tolist(), strict=True):
        if not flag:
            raise part.complaint()


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
