"""Cosine and sine against transformers' own modules."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

from semipd.core.model import parse_model_config
from semipd.engine.rope import Rotary, rotate

Tables = Sequence[torch.Tensor]
"""Cosines, and sines."""

DIM = 32
POSITIONS = 64
SCALINGS: dict[str, dict[str, Any]] = {
    "default": {},
    "linear": {"factor": 3.0},
    "dynamic": {"factor": 2.5},
    "llama3": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    },
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 16},
}
YARNS: list[dict[str, Any]] = [
    {},
    {"attention_factor": 1.7},
    {"beta_fast": 16.0, "beta_slow": 2.0},
    {"mscale": 0.8, "mscale_all_dim": 1.2},
    {"truncate": False},
]


def theirs_and_ours(kind: str, **extra: Any) -> tuple[LlamaRotaryEmbedding, Rotary]:
    config = LlamaConfig(
        vocab_size=16,
        hidden_size=4 * DIM,
        intermediate_size=8,
        num_attention_heads=4,
        num_hidden_layers=1,
        max_position_embeddings=POSITIONS,
        rope_parameters={"rope_type": kind, "rope_theta": 7000.0, **SCALINGS[kind], **extra},
        architectures=["LlamaForCausalLM"],
    )
    model = parse_model_config(config.to_dict())
    ours = Rotary(model.rope, model.head_dim, model.max_position_embeddings, torch.empty(0))
    return LlamaRotaryEmbedding(config), ours


def their_tables(module: LlamaRotaryEmbedding, positions: torch.Tensor) -> Tables:
    return [table[0] for table in module(torch.empty(1), positions[None])]


def check(theirs: Tables, ours: Tables, atol: float = 2e-6) -> None:
    (their_cos, their_sin), (cos, sin) = theirs, ours
    torch.testing.assert_close(cos, their_cos, rtol=0, atol=atol)
    half = DIM // 2
    torch.testing.assert_close(torch.cat((-sin[:, :half], sin[:, half:]), -1), their_sin, rtol=0, atol=atol)


@pytest.mark.parametrize("kind", list(SCALINGS))
def test_tables_within_the_models_positions(kind: str) -> None:
    theirs, ours = theirs_and_ours(kind)
    positions = torch.tensor([0, 1, 5, 31, 17, 62])

    check(their_tables(theirs, positions), ours.at(positions, 62))


@pytest.mark.parametrize("kind", [kind for kind in SCALINGS if kind != "dynamic"])
def test_tables_grow_beyond_them(kind: str) -> None:
    theirs, ours = theirs_and_ours(kind)
    positions = torch.tensor([3, 700])
    ours.at(torch.tensor([3]), 3)

    check(their_tables(theirs, positions), ours.at(positions, 700))


@pytest.mark.parametrize("options", YARNS)
def test_yarn_options(options: dict[str, Any]) -> None:
    theirs, ours = theirs_and_ours("yarn", **options)
    positions = torch.arange(60)

    check(their_tables(theirs, positions), ours.at(positions, 59))


def test_dynamic_scaling_follows_the_sequence_as_it_grows() -> None:
    theirs, ours = theirs_and_ours("dynamic")

    for position in (10, 63, 64, 65, 100, 300):
        at = torch.tensor([position])
        # The angle itself, up to 300, is known to the last bit of a float32.
        check(their_tables(theirs, at), ours.at(at, position), atol=3e-5)


def test_dynamic_scaling_rotates_a_long_prompt_as_a_whole() -> None:
    theirs, ours = theirs_and_ours("dynamic")
    cos, sin = their_tables(theirs, torch.arange(90))

    for start, end in ((0, 20), (20, 90)):
        found = ours.long_prompt(start, end, 90)
        assert found is not None
        check((cos[start:end], sin[start:end]), found)
    assert ours.long_prompt(0, 64, 64) is None


def test_rotation_is_transformers() -> None:
    theirs, ours = theirs_and_ours("default")
    positions = torch.tensor([4, 9, 33])
    heads = torch.randn(3, 5, DIM)
    cos, sin = ours.at(positions, 33)
    their_cos, their_sin = theirs(torch.empty(1), positions[None])

    wanted, _ = apply_rotary_pos_emb(heads[None], heads[None], their_cos, their_sin, unsqueeze_dim=2)

    torch.testing.assert_close(rotate(heads, cos[:, None], sin[:, None]), wanted[0], rtol=0, atol=1e-5)
