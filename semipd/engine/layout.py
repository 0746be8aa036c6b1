"""The layout of weights and KV pool in memory. The resident allocates by it; the engine and the loader rely on it."""

from __future__ import annotations

from dataclasses import dataclass

from semipd.core.config import PAGE_SIZE
from semipd.core.model import ModelConfig

EMBED = "embed"
NORM = "norm"
LM_HEAD = "lm_head"


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Name, shape and type of a weight."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    """"float32", "bfloat16" or "float16"."""


def layer(index: int, part: str) -> str:
    """Returns the name of a layer's tensor ("layers.3.qkv")."""
    return f"layers.{index}.{part}"


def weight_layout(model: ModelConfig, dtype: str) -> tuple[TensorSpec, ...]:
    """Returns every tensor that the engine needs, in the order in which a forward pass reads them.

    A projection is [out, in]. `qkv` stacks the rows of all query heads, then key heads, then value heads; `gate_up`
    those of gate, then up. There is no `lm_head` where the embedding serves as one.
    """
    hidden, inner, dim = model.hidden_size, model.intermediate_size, model.head_dim
    qkv_rows = (model.heads + 2 * model.kv_heads) * dim
    parts: list[tuple[str, tuple[int, ...]]] = [("attn_norm", (hidden,)), ("qkv", (qkv_rows, hidden))]
    if model.qkv_bias:
        parts.append(("qkv_bias", (qkv_rows,)))
    if model.qk_norm:
        parts += [("q_norm", (dim,)), ("k_norm", (dim,))]
    parts.append(("o", (hidden, model.heads * dim)))
    if model.o_bias:
        parts.append(("o_bias", (hidden,)))
    parts += [("mlp_norm", (hidden,)), ("gate_up", (2 * inner, hidden))]
    if model.mlp_bias:
        parts.append(("gate_up_bias", (2 * inner,)))
    parts.append(("down", (hidden, inner)))
    if model.mlp_bias:
        parts.append(("down_bias", (hidden,)))
    shapes: list[tuple[str, tuple[int, ...]]] = [(EMBED, (model.vocab_size, hidden))]
    shapes += [(layer(i, part), shape) for i in range(model.layers) for part, shape in parts]
    shapes.append((NORM, (hidden,)))
    if not model.tied_embeddings:
        shapes.append((LM_HEAD, (model.vocab_size, hidden)))
    return tuple(TensorSpec(name, shape, dtype) for name, shape in shapes)


def pool_shape(model: ModelConfig, pages: int) -> tuple[int, int, int, int, int, int]:
    """Returns the pool's shape: [layers, pages, keys and values, tokens of a page, KV heads, head_dim]."""
    return (model.layers, pages, 2, PAGE_SIZE, model.kv_heads, model.head_dim)
