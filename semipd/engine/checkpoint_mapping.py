"""Maps tensors of a Hugging Face checkpoint to the rows of our tensors that they fill."""

from __future__ import annotations

import re
from dataclasses import dataclass

from semipd.core.model import ModelConfig
from semipd.engine.layout import EMBED, LM_HEAD, NORM, layer

TIED_HEAD = "lm_head.weight"
NOT_A_WEIGHT = re.compile(r"(^|\.)rotary_emb\.inv_freq$")
"""Names of buffers that old checkpoints contain. They follow from the configuration."""


@dataclass(frozen=True, slots=True)
class WeightTarget:
    """Rows `first` to `first + rows` of our tensor `name`."""

    name: str
    first: int
    rows: int


def weight_targets(model: ModelConfig) -> dict[str, WeightTarget]:
    """Returns the targets by the checkpoint's names. Together they fill every row of `weight_layout` once."""
    queries, keys = model.heads * model.head_dim, model.kv_heads * model.head_dim
    inner, hidden, vocab = model.intermediate_size, model.hidden_size, model.vocab_size
    found = {
        "model.embed_tokens.weight": WeightTarget(EMBED, 0, vocab),
        "model.norm.weight": WeightTarget(NORM, 0, hidden),
    }
    if not model.tied_embeddings:
        found[TIED_HEAD] = WeightTarget(LM_HEAD, 0, vocab)
    for index in range(model.layers):
        theirs = f"model.layers.{index}."
        found[f"{theirs}input_layernorm.weight"] = WeightTarget(layer(index, "attn_norm"), 0, hidden)
        found[f"{theirs}post_attention_layernorm.weight"] = WeightTarget(layer(index, "mlp_norm"), 0, hidden)
        for kind, suffix, wanted in (
            ("weight", "", (True, True, True)),
            ("bias", "_bias", (model.qkv_bias, model.o_bias, model.mlp_bias)),
        ):
            has_qkv, has_o, has_mlp = wanted
            qkv, gate_up = layer(index, f"qkv{suffix}"), layer(index, f"gate_up{suffix}")
            if has_qkv:
                found[f"{theirs}self_attn.q_proj.{kind}"] = WeightTarget(qkv, 0, queries)
                found[f"{theirs}self_attn.k_proj.{kind}"] = WeightTarget(qkv, queries, keys)
                found[f"{theirs}self_attn.v_proj.{kind}"] = WeightTarget(qkv, queries + keys, keys)
            if has_o:
                found[f"{theirs}self_attn.o_proj.{kind}"] = WeightTarget(layer(index, f"o{suffix}"), 0, hidden)
            if has_mlp:
                found[f"{theirs}mlp.gate_proj.{kind}"] = WeightTarget(gate_up, 0, inner)
                found[f"{theirs}mlp.up_proj.{kind}"] = WeightTarget(gate_up, inner, inner)
                found[f"{theirs}mlp.down_proj.{kind}"] = WeightTarget(layer(index, f"down{suffix}"), 0, hidden)
        if model.qk_norm:
            found[f"{theirs}self_attn.q_norm.weight"] = WeightTarget(layer(index, "q_norm"), 0, model.head_dim)
            found[f"{theirs}self_attn.k_norm.weight"] = WeightTarget(layer(index, "k_norm"), 0, model.head_dim)
    return found
