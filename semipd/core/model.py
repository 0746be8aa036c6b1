"""Describes what a checkpoint computes: one value for all dense decoder families that the engine serves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from semipd.core.errors import ConfigError
from semipd.core.fields import Fields
from semipd.core.rope import RopeConfig, RopeKind, parse_rope

SOURCE = "config.json"
DTYPES = ("float32", "bfloat16", "float16")

LLAMA = "LlamaForCausalLM"
MISTRAL = "MistralForCausalLM"
QWEN2 = "Qwen2ForCausalLM"
QWEN3 = "Qwen3ForCausalLM"
ARCHITECTURES = (LLAMA, MISTRAL, QWEN2, QWEN3)

INERT: Mapping[str, tuple[object, ...]] = {
    "quantization_config": (),
    "compression_config": (),
    "auto_map": (),
    "dual_chunk_attention_config": (),
    "attention_chunk_size": (),
    "attn_logit_softcapping": (),
    "final_logit_softcapping": (),
    "logits_soft_cap": (),
    "query_pre_attn_scalar": (),
    "logit_scale": (1, 1.0),
    "logits_scaling": (1, 1.0),
    "embedding_multiplier": (1, 1.0),
    "residual_multiplier": (1, 1.0),
    "attention_multiplier": (),
    "num_experts": (0, 1),
    "num_local_experts": (0, 1),
    "pretraining_tp": (0, 1),
    "is_encoder_decoder": (False,),
    "add_cross_attention": (False,),
    "use_mrope": (False,),
    "rope_interleaved": (False,),
    "no_rope_layers": ([],),
}
"""Fields that change what a model computes, with the values at which they don't (besides null)."""


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """A decoder-only transformer with RMS norms, rotary positions, grouped-query attention and a SiLU-gated MLP."""

    architecture: str
    """Name in config.json ("LlamaForCausalLM")."""
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    rms_norm_eps: float
    max_position_embeddings: int
    rope: RopeConfig
    windows: tuple[int | None, ...]
    """Each layer's sliding window, in tokens: a query sees that many, itself among them. None: all before it."""
    tied_embeddings: bool = False
    """The output projection is the embedding."""
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    """An RMS norm over each head of queries and keys, before the rotation."""
    eos_token_ids: tuple[int, ...] = ()
    dtype: str = "float32"
    """Number format of the checkpoint's weights."""

    @property
    def max_context(self) -> int:
        """Most tokens, prompt and output together, that the positions are meant for, RoPE scaling included."""
        if self.rope.kind in (RopeKind.LINEAR, RopeKind.DYNAMIC):
            return int(self.max_position_embeddings * self.rope.factor)
        if self.rope.kind is RopeKind.YARN:
            return max(self.max_position_embeddings, int(self.rope.original_max_positions * self.rope.factor))
        return self.max_position_embeddings

    def context_limit(self, asked: int) -> int:
        """Returns the longest context that is served, in tokens: `asked` (--max-context), or for 0 the model's own.

        Raises ConfigError if more is asked for than the model has.
        """
        if asked > self.max_context:
            raise ConfigError(f"--max-context: the model's positions end at {self.max_context}; got {asked}")
        return asked or self.max_context

    @property
    def parameters(self) -> int:
        """Number of weights in the checkpoint; tied embeddings count once."""
        heads = self.heads + 2 * self.kv_heads
        qkv = heads * self.head_dim * (self.hidden_size + self.qkv_bias)
        o = self.hidden_size * (self.heads * self.head_dim + self.o_bias)
        gate_up = 2 * self.intermediate_size * (self.hidden_size + self.mlp_bias)
        down = self.hidden_size * (self.intermediate_size + self.mlp_bias)
        norms = 2 * self.hidden_size + 2 * self.head_dim * self.qk_norm
        embeddings = self.vocab_size * self.hidden_size * (1 if self.tied_embeddings else 2)
        return self.layers * (qkv + o + gate_up + down + norms) + embeddings + self.hidden_size


def parse_model_config(config: Mapping[str, Any]) -> ModelConfig:
    """Reads the object in a Hugging Face config.json, with transformers' defaults for absent fields.

    Raises CheckpointError, naming the field, its value and what is supported, if the model needs something that
    the engine would not do. Fields that transformers ignores for these families, and that no known checkpoint gives
    a meaning to, are ignored.
    """
    fields = Fields(config, SOURCE)
    architecture = _architecture(fields)
    _refuse_what_is_not_served(fields, architecture)
    heads = fields.integer("num_attention_heads")
    kv_heads = fields.integer("num_key_value_heads", heads if architecture == LLAMA else None)
    if heads % kv_heads:
        fields.refuse("num_key_value_heads", f"a divisor of num_attention_heads ({heads})")
    hidden_size = fields.integer("hidden_size")
    layers = fields.integer("num_hidden_layers")
    max_positions = fields.integer("max_position_embeddings")
    attention_bias = fields.flag("attention_bias", architecture == QWEN2)
    return ModelConfig(
        architecture=architecture,
        vocab_size=fields.integer("vocab_size"),
        hidden_size=hidden_size,
        intermediate_size=fields.integer("intermediate_size"),
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=_head_dim(fields, architecture, hidden_size, heads),
        rms_norm_eps=fields.number("rms_norm_eps", 1e-6),
        max_position_embeddings=max_positions,
        rope=parse_rope(fields, max_positions),
        windows=_windows(fields, architecture, layers),
        tied_embeddings=fields.flag("tie_word_embeddings", False),
        qkv_bias=attention_bias,
        o_bias=attention_bias and architecture != QWEN2,
        mlp_bias=fields.flag("mlp_bias", False),
        qk_norm=architecture == QWEN3,
        eos_token_ids=parse_eos_token_ids(fields),
        dtype=_dtype(fields),
    )


def parse_eos_token_ids(fields: Fields) -> tuple[int, ...]:
    """Reads `eos_token_id`: one, several or none. config.json and generation_config.json write it alike."""
    value = fields.raw("eos_token_id")
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if not all(isinstance(i, int) and not isinstance(i, bool) and i >= 0 for i in ids):
        fields.refuse("eos_token_id", "a token id or a list of them")
    return tuple(ids)


def _architecture(fields: Fields) -> str:
    names = fields.raw("architectures")
    if not isinstance(names, list) or len(names) != 1 or names[0] not in ARCHITECTURES:
        fields.refuse("architectures", ", ".join(ARCHITECTURES))
    return str(names[0])


def _refuse_what_is_not_served(fields: Fields, architecture: str) -> None:
    for name, harmless in INERT.items():
        value = fields.raw(name)
        if value is not None and value not in harmless:
            fields.refuse(name, " or ".join(map(repr, harmless)) or "no such field")
    if fields.text("hidden_act", "silu") not in ("silu", "swish"):
        fields.refuse("hidden_act", "silu")
    if architecture == QWEN2 and not fields.flag("attention_bias", True):
        fields.refuse("attention_bias", f"true with {QWEN2}")
    if architecture == MISTRAL and fields.flag("attention_bias", False):
        fields.refuse("attention_bias", f"false with {MISTRAL}")
    if architecture != LLAMA and fields.flag("mlp_bias", False):
        fields.refuse("mlp_bias", f"false with {architecture}")


def _head_dim(fields: Fields, architecture: str, hidden_size: int, heads: int) -> int:
    if architecture == QWEN3 and not fields.has_null("head_dim"):
        head_dim = fields.integer("head_dim", 128)
    else:
        if fields.raw("head_dim") is None and hidden_size % heads:
            fields.refuse("num_attention_heads", f"a divisor of hidden_size ({hidden_size}) where head_dim is absent")
        head_dim = fields.integer("head_dim", hidden_size // heads)
    if head_dim % 2 or head_dim < 4:
        fields.refuse("head_dim", "an even number of at least 4")
    return head_dim


def _windows(fields: Fields, architecture: str, layers: int) -> tuple[int | None, ...]:
    if architecture in (QWEN2, QWEN3):
        return _qwen_windows(fields, layers)
    types = fields.raw("layer_types")
    if types is not None and set(types) != {"sliding_attention" if architecture == MISTRAL else "full_attention"}:
        fields.refuse("layer_types", f"the same for all layers with {architecture}")
    if architecture == LLAMA:
        if fields.raw("sliding_window") is not None:
            fields.refuse("sliding_window", f"null with {LLAMA}")
        return (None,) * layers
    if fields.has_null("sliding_window"):
        return (None,) * layers
    return (fields.integer("sliding_window", 4096),) * layers


def _qwen_windows(fields: Fields, layers: int) -> tuple[int | None, ...]:
    window: int | None = None
    if fields.flag("use_sliding_window", False) and not fields.has_null("sliding_window"):
        window = fields.integer("sliding_window", 4096)
    types = fields.raw("layer_types")
    if types is None:
        first = fields.integer("max_window_layers", 28, minimum=0)
        return tuple(window if layer >= first else None for layer in range(layers))
    if not isinstance(types, list) or len(types) != layers:
        fields.refuse("layer_types", f"a list of {layers} entries (num_hidden_layers)")
    if not set(types) <= {"full_attention", "sliding_attention"}:
        fields.refuse("layer_types", "full_attention and sliding_attention")
    if window is None and "sliding_attention" in types:
        fields.refuse("layer_types", "full_attention alone unless use_sliding_window and sliding_window are set")
    return tuple(window if kind == "sliding_attention" else None for kind in types)


def _dtype(fields: Fields) -> str:
    name = "dtype" if fields.raw("dtype") is not None else "torch_dtype"
    dtype = fields.text(name, "float32").removeprefix("torch.")
    if dtype not in DTYPES:
        fields.refuse(name, ", ".join(DTYPES))
    return dtype
