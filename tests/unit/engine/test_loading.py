"""Checkpoints: what is read, and what is refused by name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from semipd.core.errors import CheckpointError
from semipd.core.model import ModelConfig
from semipd.engine.layout import weight_layout
from semipd.engine.loading import fill_dummy, load_checkpoint, read_model_config
from semipd.engine.staging import Staging

WEIGHTS = "model.safetensors"
Tensors = dict[str, torch.Tensor]
Load = Callable[..., Tensors]
Copy = Callable[..., Path]


def silent(done: int, total: int) -> None:
    pass


def empty(model: ModelConfig, dtype: torch.dtype = torch.float32) -> Tensors:
    return {spec.name: torch.full(spec.shape, torch.nan, dtype=dtype) for spec in weight_layout(model, "")}


def load_mapped(
    directory: Path, dtype: torch.dtype = torch.float32, progress: Callable[[int, int], None] = silent
) -> Tensors:
    model = read_model_config(directory)
    weights = empty(model, dtype)
    load_checkpoint(directory, model, weights, progress)
    return weights


def load_staged(
    directory: Path, dtype: torch.dtype = torch.float32, progress: Callable[[int, int], None] = silent
) -> Tensors:
    """Loads as a GPU does, in pieces so small that most tensors have several and none fills its last."""
    model = read_model_config(directory)
    weights = empty(model, dtype)
    with Staging(torch.device("cpu"), buffers=3, buffer_bytes=1000) as staging:
        load_checkpoint(directory, model, weights, progress, staging)
    return weights


@pytest.fixture(params=[load_mapped, load_staged], ids=["mapped", "staged"])
def load(request: pytest.FixtureRequest) -> Load:
    found: Load = request.param
    return found


@pytest.fixture
def copy(checkpoint: Callable[..., Path], tmp_path: Path) -> Copy:
    """A checkpoint that the test may spoil."""

    def make(family: str = "llama") -> Path:
        return shutil.copytree(checkpoint(family), tmp_path / "model")

    return make


def rewrite(directory: Path, change: Callable[[Tensors], object]) -> None:
    tensors = load_file(directory / WEIGHTS)
    change(tensors)
    save_file(tensors, directory / WEIGHTS, {"format": "pt"})


def edit_config(directory: Path, name: str = "config.json", **changes: Any) -> None:
    path = directory / name
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_every_row_is_filled_from_where_it_belongs(family: str, checkpoint: Callable[..., Path], load: Load) -> None:
    weights = load(checkpoint(family))

    assert all(torch.isfinite(tensor).all() for tensor in weights.values())
    raw = load_file(checkpoint(family) / WEIGHTS)
    parts = [raw[f"model.layers.1.self_attn.{part}_proj.weight"] for part in "qkv"]
    assert torch.equal(weights["layers.1.qkv"], torch.cat(parts))
    parts = [raw[f"model.layers.0.mlp.{part}_proj.weight"] for part in ("gate", "up")]
    assert torch.equal(weights["layers.0.gate_up"], torch.cat(parts))


def test_shards_are_read_through_their_index(checkpoint: Callable[..., Path], tmp_path: Path, load: Load) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(checkpoint("llama"), dtype=torch.float32)
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2

    whole, sharded = load(checkpoint("llama")), load(tmp_path)

    assert whole.keys() == sharded.keys()
    assert all(torch.equal(whole[name], sharded[name]) for name in whole)


def test_weights_are_converted_to_the_type_asked_for(checkpoint: Callable[..., Path], load: Load) -> None:
    exact, rounded = load(checkpoint("qwen2")), load(checkpoint("qwen2"), torch.bfloat16)

    assert torch.equal(rounded["layers.0.qkv_bias"], exact["layers.0.qkv_bias"].bfloat16())


def test_progress_rises_to_the_total(checkpoint: Callable[..., Path], load: Load) -> None:
    seen = []

    load(checkpoint("llama"), progress=lambda done, total: seen.append((done, total)))

    done = [d for d, _ in seen]
    assert done == sorted(done)
    assert done[0] == 0
    assert seen[-1] == (seen[0][1], seen[0][1])
    assert len(seen) > 10


def test_rotary_buffers_and_a_tied_head_may_be_there(copy: Copy, load: Load) -> None:
    directory = copy("qwen2, tied, windows above the first layer")

    def change(tensors: Tensors) -> None:
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()

    rewrite(directory, change)

    assert "lm_head" not in load(directory)


def test_a_tied_head_that_differs_is_refused(copy: Copy, load: Load) -> None:
    directory = copy("qwen2, tied, windows above the first layer")
    rewrite(directory, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"] + 1}))

    with pytest.raises(CheckpointError, match=r"model\.safetensors: lm_head\.weight differs"):
        load(directory)


def test_a_tied_head_of_another_shape_is_refused(copy: Copy, load: Load) -> None:
    directory = copy("qwen2, tied, windows above the first layer")
    rewrite(directory, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"][:-1].clone()}))

    with pytest.raises(CheckpointError, match=r"model\.safetensors: lm_head\.weight differs"):
        load(directory)


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("wanted", [torch.float32, torch.bfloat16, torch.float16])
def test_read_either_way_the_weights_are_the_same_to_the_bit(
    copy: Copy, stored: torch.dtype, wanted: torch.dtype
) -> None:
    directory = copy("llama, biases and explicit head_dim")
    rewrite(directory, lambda t: t.update({name: tensor.to(stored) for name, tensor in t.items()}))

    mapped, staged = load_mapped(directory, wanted), load_staged(directory, wanted)

    assert mapped.keys() == staged.keys()
    assert all(torch.equal(mapped[name], staged[name]) for name in mapped)


NAME = "model.layers.1.self_attn.k_proj.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(NAME), rf"model\.safetensors: {NAME} is missing$"),
        (
            lambda t: t.update({"model.layers.9.extra": torch.ones(2)}),
            r"model\.layers\.9\.extra is no weight of a Llama",
        ),
        (lambda t: t.update({NAME: t[NAME][:-1].clone()}), rf"{NAME} has shape \[15, 32\], not \[16, 32\]"),
        (lambda t: t.update({NAME: t[NAME].to(torch.int8)}), rf"{NAME} is of type torch\.int8"),
        (lambda t: t[NAME].view(-1)[5].fill_(torch.nan), rf"{NAME} holds numbers that are not finite"),
        (lambda t: t[NAME].view(-1)[5].fill_(torch.inf), rf"{NAME} holds numbers that are not finite"),
    ],
    ids=["missing", "extra", "misshapen", "integers", "nan", "infinite"],
)
def test_a_wrong_tensor_is_refused_by_name(
    copy: Copy, change: Callable[[Tensors], object], message: str, load: Load
) -> None:
    directory = copy()
    rewrite(directory, change)

    with pytest.raises(CheckpointError, match=message):
        load(directory)


def test_a_weight_too_large_for_the_type_is_refused(copy: Copy, load: Load) -> None:
    directory = copy()
    rewrite(directory, lambda t: t[NAME].view(-1)[5].fill_(1e6))

    with pytest.raises(CheckpointError, match=rf"{NAME} .*float16"):
        load(directory, torch.float16)


@pytest.mark.parametrize("spoil", [lambda b: b[:-100], lambda b: b[:4], lambda b: b"", lambda b: b"\xff" * 8 + b[8:]])
def test_a_broken_file_is_refused_by_name(copy: Copy, spoil: Callable[[bytes], bytes], load: Load) -> None:
    directory = copy()
    path = directory / WEIGHTS
    path.write_bytes(spoil(path.read_bytes()))

    with pytest.raises(CheckpointError, match=r"model\.safetensors: cannot be read"):
        load(directory)


def test_only_safetensors_are_read(copy: Copy, load: Load) -> None:
    directory = copy()
    (directory / WEIGHTS).rename(directory / "pytorch_model.bin")

    with pytest.raises(CheckpointError, match="only safetensors"):
        load(directory)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ("{", "not JSON"),
        ("[]", "not a JSON object"),
        ("{}", "weight_map"),
        ('{"weight_map": {"a": "../other/model.safetensors"}}', "the model directory itself"),
        ('{"weight_map": {"a": "lost.safetensors"}}', r"lost\.safetensors: cannot be read"),
    ],
)
def test_a_broken_index_is_refused(copy: Copy, index: str, message: str, load: Load) -> None:
    directory = copy()
    (directory / WEIGHTS).unlink()
    (directory / "model.safetensors.index.json").write_text(index)

    with pytest.raises(CheckpointError, match=message):
        load(directory)


def test_a_tensor_in_two_shards_is_refused(copy: Copy, load: Load) -> None:
    directory = copy()
    tensors = load_file(directory / WEIGHTS)
    (directory / WEIGHTS).unlink()
    save_file(tensors, directory / "a.safetensors")
    save_file({NAME: tensors[NAME]}, directory / "b.safetensors")
    index = {"weight_map": dict.fromkeys(tensors, "a.safetensors") | {NAME: "b.safetensors"}}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))

    with pytest.raises(CheckpointError, match=rf"b\.safetensors: {NAME} is in a\.safetensors too"):
        load(directory)


def test_no_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json"):
        read_model_config(tmp_path)


@pytest.mark.parametrize(
    ("config", "generation", "expected"),
    [(3, None, (3,)), ([3, 4], None, (3, 4)), (3, [5, 6], (5, 6)), (None, 7, (7,)), (None, None, ())],
)
def test_end_of_sequence_tokens_come_from_either_file(
    copy: Copy, config: int | list[int] | None, generation: int | list[int] | None, expected: tuple[int, ...]
) -> None:
    directory = copy()
    edit_config(directory, eos_token_id=config)
    edit_config(directory, "generation_config.json", eos_token_id=generation)

    assert read_model_config(directory).eos_token_ids == expected


def test_an_end_of_sequence_token_outside_the_vocabulary_is_refused(copy: Copy) -> None:
    directory = copy()
    edit_config(directory, eos_token_id=160)

    with pytest.raises(CheckpointError, match="eos_token_id = 160"):
        read_model_config(directory)


def test_dummy_weights_fill_everything_and_follow_the_seed(checkpoint: Callable[..., Path]) -> None:
    model = read_model_config(checkpoint("llama, biases and explicit head_dim"))
    first, same, other = empty(model), empty(model), empty(model)

    fill_dummy(model, first, 1)
    fill_dummy(model, same, 1)
    fill_dummy(model, other, 2)

    assert all(torch.isfinite(tensor).all() for tensor in first.values())
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert not torch.equal(first["layers.0.qkv"], other["layers.0.qkv"])
    assert torch.equal(first["norm"], torch.ones(32))
    assert first["layers.0.qkv"].std().item() == pytest.approx(32**-0.5, rel=0.1)


def test_dummy_weights_longer_than_the_block_are_filled(checkpoint: Callable[..., Path]) -> None:
    model = read_model_config(checkpoint("llama"))
    big = {"embed": torch.full((1100, 1000), torch.nan, dtype=torch.bfloat16)}

    fill_dummy(model, big, 0)

    assert torch.isfinite(big["embed"]).all()
    assert len(torch.unique(big["embed"], dim=0)) == 1100
