"""The forward pass on a CPU of every model family that is served, over weights in the layout of
`semipd.engine.layout`."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch.nn.functional import embedding, linear, rms_norm, silu

from semipd.core.model import ModelConfig
from semipd.engine.attention import Attention
from semipd.engine.layout import EMBED, LM_HEAD, NORM, layer, weight_layout
from semipd.engine.pulse import Pulse
from semipd.engine.rope import rotate


class DecoderLayer:
    """One decoder layer. Holds the model's tensors, not copies."""

    def __init__(self, model: ModelConfig, weights: Mapping[str, torch.Tensor], index: int) -> None:
        def of(part: str) -> torch.Tensor:
            return weights[layer(index, part)]

        def maybe(part: str) -> torch.Tensor | None:
            return weights.get(layer(index, part))

        self._index = index
        self._eps = model.rms_norm_eps
        self._heads, self._kv_heads, self._dim = model.heads, model.kv_heads, model.head_dim
        self._attn_norm, self._mlp_norm = of("attn_norm"), of("mlp_norm")
        self._qkv, self._qkv_bias = of("qkv"), maybe("qkv_bias")
        self._q_norm, self._k_norm = maybe("q_norm"), maybe("k_norm")
        self._o, self._o_bias = of("o").t(), maybe("o_bias")
        self._gate_up, self._gate_up_bias = of("gate_up"), maybe("gate_up_bias")
        self._down, self._down_bias = of("down").t(), maybe("down_bias")
        self._inner = model.intermediate_size

    def attend(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, attention: Attention) -> torch.Tensor:
        """Computes attention, [tokens, hidden] -> [tokens, heads · head_dim], and fills the KV pool for these
        tokens."""
        normed = rms_norm(x, self._attn_norm.shape, self._attn_norm, self._eps)
        heads = linear(normed, self._qkv, self._qkv_bias).view(len(x), -1, self._dim)
        rotated, plain = self._heads + self._kv_heads, heads
        if self._q_norm is None or self._k_norm is None:
            heads = rotate(heads[:, :rotated], cos, sin)
        else:
            queries = rms_norm(heads[:, : self._heads], self._q_norm.shape, self._q_norm, self._eps)
            keys = rms_norm(heads[:, self._heads : rotated], self._k_norm.shape, self._k_norm, self._eps)
            heads = rotate(torch.cat((queries, keys), 1), cos, sin)
        return attention(self._index, heads[:, : self._heads], heads[:, self._heads :], plain[:, rotated:])

    def finish(self, x: torch.Tensor, attended: torch.Tensor) -> torch.Tensor:
        """Computes the output projection and the MLP, [tokens, hidden], from the layer's input and its attention."""
        x = torch.addmm(x, attended, self._o)
        if self._o_bias is not None:
            x += self._o_bias
        normed = rms_norm(x, self._mlp_norm.shape, self._mlp_norm, self._eps)
        gate_up = linear(normed, self._gate_up, self._gate_up_bias)
        x = torch.addmm(x, silu(gate_up[:, : self._inner]).mul_(gate_up[:, self._inner :]), self._down)
        if self._down_bias is not None:
            x += self._down_bias
        return x


class Decoder:
    """The decoder layers, with the embedding before and the output head behind them."""

    def __init__(self, model: ModelConfig, weights: Mapping[str, torch.Tensor]) -> None:
        """Takes the model's weights. Raises ValueError where they are not those of `weight_layout`."""
        for spec in weight_layout(model, ""):
            if spec.name not in weights or tuple(weights[spec.name].shape) != spec.shape:
                raise ValueError(f"weights lack {spec.name} of shape {spec.shape}")
        self._eps = model.rms_norm_eps
        self._embed = weights[EMBED]
        self._norm = weights[NORM]
        self._head = weights[EMBED if model.tied_embeddings else LM_HEAD]
        self._layers = [DecoderLayer(model, weights, index) for index in range(model.layers)]

    def forward(
        self,
        tokens: torch.Tensor,
        rotation: tuple[torch.Tensor, torch.Tensor],
        attention: Attention,
        pulse: Pulse,
        wanted: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Returns the logits [rows, vocab] of the tokens at places `wanted`; None: of all tokens.

        `tokens` [tokens]; `rotation`: cosine and sine of [tokens, head_dim]. Afterwards the KV of all tokens is in the
        pool.
        """
        x = embedding(tokens, self._embed)
        cos, sin = rotation[0][:, None], rotation[1][:, None]
        for decoder_layer in self._layers[:-1]:
            x = decoder_layer.finish(x, decoder_layer.attend(x, cos, sin, attention))
            pulse.beat()
        last = self._layers[-1]
        attended = last.attend(x, cos, sin, attention)
        if wanted is not None:
            # From here on tokens do not need one another.
            x, attended = x.index_select(0, wanted), attended.index_select(0, wanted)
        x = last.finish(x, attended)
        pulse.beat()
        return linear(rms_norm(x, self._norm.shape, self._norm, self._eps), self._head)
