"""config.json of the families that are served, and what is refused."""

from __future__ import annotations

import math
from typing import Any

import pytest

from semipd.core.errors import CheckpointError
from semipd.core.model import ModelConfig, parse_model_config
from semipd.core.rope import RopeKind

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 100,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
MISTRAL = LLAMA | {"architectures": ["MistralForCausalLM"]}
QWEN2 = LLAMA | {"architectures": ["Qwen2ForCausalLM"]}
QWEN3 = LLAMA | {"architectures": ["Qwen3ForCausalLM"]}
LLAMA3_ROPE: dict[str, Any] = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}


def parse(base: dict[str, Any] = LLAMA, /, **changes: Any) -> ModelConfig:
    return parse_model_config(base | changes)


def test_a_bare_llama_has_transformers_defaults() -> None:
    model = parse()

    assert (model.head_dim, model.kv_heads, model.rms_norm_eps) == (8, 2, 1e-6)
    assert (model.rope.kind, model.rope.theta) == (RopeKind.DEFAULT, 10_000.0)
    assert model.windows == (None, None, None)
    assert [model.tied_embeddings, model.qkv_bias, model.o_bias, model.mlp_bias, model.qk_norm] == [False] * 5
    assert (model.dtype, model.eos_token_ids) == ("float32", ())


def test_an_old_llama_has_as_many_kv_heads_as_heads() -> None:
    assert parse({k: v for k, v in LLAMA.items() if k != "num_key_value_heads"}).kv_heads == 8


def test_what_each_family_adds() -> None:
    biased = parse(attention_bias=True, mlp_bias=True)
    assert (biased.qkv_bias, biased.o_bias, biased.mlp_bias) == (True, True, True)
    qwen2 = parse(QWEN2)
    assert (qwen2.qkv_bias, qwen2.o_bias, qwen2.qk_norm, qwen2.head_dim) == (True, False, False, 8)
    qwen3 = parse(QWEN3, tie_word_embeddings=True)
    assert (qwen3.qkv_bias, qwen3.qk_norm, qwen3.head_dim, qwen3.tied_embeddings) == (False, True, 128, True)


@pytest.mark.parametrize(
    ("base", "changes", "windows"),
    [
        (MISTRAL, {}, (4096,) * 3),
        (MISTRAL, {"sliding_window": 7}, (7,) * 3),
        (MISTRAL, {"sliding_window": None}, (None,) * 3),
        (QWEN2, {"sliding_window": 7}, (None,) * 3),
        (QWEN2, {"sliding_window": 7, "use_sliding_window": True}, (None,) * 3),
        (QWEN2, {"sliding_window": 7, "use_sliding_window": True, "max_window_layers": 1}, (None, 7, 7)),
        (QWEN3, {"use_sliding_window": True, "max_window_layers": 2}, (None, None, 4096)),
        (
            QWEN3,
            {
                "sliding_window": 9,
                "use_sliding_window": True,
                "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            },
            (9, None, 9),
        ),
    ],
)
def test_sliding_windows(base: dict[str, Any], changes: dict[str, Any], windows: tuple[int | None, ...]) -> None:
    assert parse(base, **changes).windows == windows


@pytest.mark.parametrize(
    "layout",
    [
        {"rope_theta": 5e5, "rope_scaling": LLAMA3_ROPE},
        {"rope_parameters": LLAMA3_ROPE | {"rope_theta": 5e5}},
        {"rope_theta": 1.0, "rope_scaling": LLAMA3_ROPE | {"rope_theta": 5e5}, "rope_parameters": {"rope_type": "x"}},
    ],
)
def test_rope_in_the_old_and_the_new_layout(layout: dict[str, Any]) -> None:
    rope = parse(**layout).rope

    assert rope.kind is RopeKind.LLAMA3
    assert (rope.theta, rope.factor, rope.original_max_positions) == (5e5, 8.0, 32)
    assert (rope.low_freq_factor, rope.high_freq_factor) == (1.0, 4.0)


def test_rope_kinds_by_their_old_name() -> None:
    assert parse(rope_scaling={"type": "linear", "factor": 4}).rope.kind is RopeKind.LINEAR
    assert parse(rope_scaling={"type": "dynamic", "factor": 4}).rope.kind is RopeKind.DYNAMIC
    yarn = parse(rope_scaling={"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}).rope
    assert (yarn.kind, yarn.original_max_positions, yarn.beta_fast, yarn.attention_factor) == (
        RopeKind.YARN,
        32,
        32,
        None,
    )


@pytest.mark.parametrize(
    ("rope", "context"),
    [
        ({}, 128),
        ({"rope_type": "linear", "factor": 2.0}, 256),
        ({"rope_type": "dynamic", "factor": 4.0}, 512),
        (LLAMA3_ROPE, 128),
        ({"rope_type": "yarn", "factor": 4.0}, 512),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}, 128),
    ],
)
def test_the_context_includes_what_rope_scaling_adds(rope: dict[str, Any], context: int) -> None:
    assert parse(rope_scaling=rope).max_context == context


@pytest.mark.parametrize(("value", "expected"), [(3, (3,)), ([3, 5], (3, 5)), (None, ())])
def test_end_of_sequence_tokens(value: Any, expected: tuple[int, ...]) -> None:
    assert parse(eos_token_id=value).eos_token_ids == expected


@pytest.mark.parametrize("field", ["dtype", "torch_dtype"])
def test_the_checkpoints_type(field: str) -> None:
    assert parse(**{field: "bfloat16"}).dtype == "bfloat16"


def test_parameters_are_counted() -> None:
    one_layer = 64 * (64 + 2 * 16) + 64 * 64 + 3 * 64 * 96 + 2 * 64
    assert parse().parameters == 3 * one_layer + 2 * 100 * 64 + 64
    assert parse(tie_word_embeddings=True).parameters == 3 * one_layer + 100 * 64 + 64
    assert parse(QWEN2).parameters == 3 * (one_layer + 64 + 2 * 16) + 2 * 100 * 64 + 64


def test_fields_without_effect_are_no_matter() -> None:
    harmless = {
        "pretraining_tp": 1,
        "attention_dropout": 0.1,
        "use_cache": False,
        "unsloth_version": "1",
        "bos_token_id": 4,
    }

    assert parse(**harmless) == parse()


@pytest.mark.parametrize(
    ("base", "changes", "message"),
    [
        (LLAMA, {"architectures": ["GemmaForCausalLM"]}, r"architectures = \['GemmaForCausalLM'\].*Qwen3ForCausalLM"),
        (LLAMA, {"architectures": None}, "architectures = None"),
        (LLAMA, {"architectures": ["LlamaForCausalLM", "X"]}, "architectures"),
        (LLAMA, {"hidden_act": "gelu"}, "hidden_act = 'gelu'; supported: silu"),
        (LLAMA, {"quantization_config": {"quant_method": "awq"}}, "quantization_config.*supported: no such field"),
        (LLAMA, {"pretraining_tp": 2}, "pretraining_tp = 2"),
        (LLAMA, {"partial_rotary_factor": 0.5}, r"partial_rotary_factor = 0\.5; supported: 1\.0"),
        (LLAMA, {"rope_parameters": {"partial_rotary_factor": 0.5}}, r"rope_parameters\.partial_rotary_factor = 0\.5"),
        (LLAMA, {"auto_map": {"AutoModel": "x.Y"}}, "auto_map"),
        (LLAMA, {"rope_scaling": {"rope_type": "longrope"}}, r"rope_scaling\.rope_type = 'longrope'; .*llama3, yarn"),
        (LLAMA, {"rope_scaling": {"type": "su"}}, r"rope_scaling\.type = 'su'"),
        (LLAMA, {"rope_scaling": {"rope_type": "linear"}}, r"rope_scaling\.factor is missing"),
        (LLAMA, {"rope_scaling": {"rope_type": "linear", "factor": -1}}, r"rope_scaling\.factor = -1"),
        (LLAMA, {"rope_scaling": {"rope_type": "linear", "factor": math.nan}}, r"rope_scaling\.factor = nan"),
        (LLAMA, {"rope_scaling": LLAMA3_ROPE | {"high_freq_factor": 1.0}}, r"rope_scaling\.high_freq_factor"),
        (LLAMA, {"rope_scaling": {"rope_type": "default", "mrope_section": [1]}}, r"rope_scaling\.mrope_section"),
        (LLAMA, {"rope_scaling": "linear"}, "rope_scaling = 'linear'; supported: an object"),
        (LLAMA, {"sliding_window": 16}, "sliding_window = 16; supported: null"),
        (LLAMA, {"layer_types": ["sliding_attention"] * 3}, "layer_types"),
        (LLAMA, {"num_key_value_heads": 3}, "num_key_value_heads = 3"),
        (LLAMA, {"num_attention_heads": 6}, "num_attention_heads = 6; supported: a divisor of hidden_size"),
        (LLAMA, {"head_dim": 7}, "head_dim = 7; supported: an even number"),
        (LLAMA, {"hidden_size": None}, "hidden_size is missing"),
        (LLAMA, {"hidden_size": "64"}, "hidden_size = '64'; supported: an integer"),
        (LLAMA, {"num_hidden_layers": 0}, "num_hidden_layers = 0; supported: an integer of at least 1"),
        (LLAMA, {"vocab_size": True}, "vocab_size = True"),
        (LLAMA, {"torch_dtype": "float8_e4m3fn"}, "torch_dtype = 'float8_e4m3fn'; supported: float32"),
        (LLAMA, {"eos_token_id": "</s>"}, "eos_token_id"),
        (LLAMA, {"eos_token_id": [-1]}, "eos_token_id"),
        (LLAMA, {"tie_word_embeddings": "yes"}, "tie_word_embeddings = 'yes'; supported: true or false"),
        (MISTRAL, {"attention_bias": True}, "attention_bias = True"),
        (MISTRAL, {"num_key_value_heads": None}, "num_key_value_heads is missing"),
        (QWEN2, {"attention_bias": False}, "attention_bias = False"),
        (QWEN2, {"mlp_bias": True}, "mlp_bias = True"),
        (QWEN2, {"dual_chunk_attention_config": {"chunk_size": 1}}, "dual_chunk_attention_config"),
        (QWEN3, {"layer_types": ["sliding_attention"] * 3}, "layer_types"),
        (QWEN3, {"layer_types": ["full_attention"]}, "layer_types.*3 entries"),
        (QWEN3, {"layer_types": ["linear_attention"] * 3}, "layer_types"),
    ],
)
def test_what_is_not_served_is_refused_by_field_value_and_choice(
    base: dict[str, Any], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        parse(base, **changes)
