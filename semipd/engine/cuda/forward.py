"""The forward pass on a GPU. Its buffers are allocated once, so that every pass can be captured in a graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from semipd.core.model import ModelConfig
from semipd.engine.cuda.kernels.elementwise import rms_norm, rotate_and_write, silu_gate
from semipd.engine.layout import EMBED, LM_HEAD, NORM, layer, pool_shape, weight_layout
from semipd.engine.rope import Rotary

Rotation = tuple[torch.Tensor, torch.Tensor]
"""Cosine and sine, [positions, head_dim / 2] float32 each."""

AttendFunction = Callable[[int, torch.Tensor, torch.Tensor], None]
"""A function of (layer, queries, out) that computes attention. Queries and out are [tokens, heads, head_dim]; the
layer's keys and values are in the pool."""


MLP_ROWS = 4096
"""The most tokens that go through an MLP at once. It is as fast as with more, and its buffers are the largest of
all."""


@dataclass(frozen=True, slots=True)
class PassInputs:
    """The tokens of a pass, [tokens] int32 each: ids, positions, and the pool's slots for their keys and values."""

    tokens: torch.Tensor
    positions: torch.Tensor
    slots: torch.Tensor


class LayerWeights:
    """The tensors of one layer, not copies. Projections are transposed, for products from the left."""

    def __init__(self, model: ModelConfig, weights: Mapping[str, torch.Tensor], index: int) -> None:
        def of(part: str) -> torch.Tensor:
            return weights[layer(index, part)]

        def maybe(part: str) -> torch.Tensor | None:
            return weights.get(layer(index, part))

        self.attn_norm, self.mlp_norm = of("attn_norm"), of("mlp_norm")
        self.qkv, self.o = of("qkv").t(), of("o").t()
        self.gate_up, self.down = of("gate_up").t(), of("down").t()
        self.qkv_bias, self.o_bias = maybe("qkv_bias"), maybe("o_bias")
        self.gate_up_bias, self.down_bias = maybe("gate_up_bias"), maybe("down_bias")
        self.norms = (of("q_norm"), of("k_norm")) if model.qk_norm else None


class ForwardPass:
    """The forward pass and its buffers.

    Two passes must not run at once, because they share the buffers: passes on several streams must be ordered.
    """

    def __init__(
        self, model: ModelConfig, weights: Mapping[str, torch.Tensor], pool: torch.Tensor, most_tokens: int, rows: int
    ) -> None:
        """Allocates the buffers for `most_tokens` tokens in a pass, with logits of `rows` of them at most.

        Raises ValueError where a tensor has another shape than `semipd.engine.layout` says.
        """
        for spec in weight_layout(model, ""):
            if spec.name not in weights or tuple(weights[spec.name].shape) != spec.shape:
                raise ValueError(f"weights lack {spec.name} of shape {spec.shape}")
        if tuple(pool.shape) != pool_shape(model, pool.shape[1]):
            raise ValueError(f"the pool's shape is {tuple(pool.shape)}, not {pool_shape(model, pool.shape[1])}")
        self.model, self.pool = model, pool
        self.most_tokens, self.rows = most_tokens, rows
        self.layers = [LayerWeights(model, weights, index) for index in range(model.layers)]
        self._embed, self._norm = weights[EMBED], weights[NORM]
        self._head = weights[EMBED if model.tied_embeddings else LM_HEAD].t()

        def buffer(*shape: int) -> torch.Tensor:
            return torch.empty(shape, dtype=pool.dtype, device=pool.device)

        heads, kv_heads, dim = model.heads, model.kv_heads, model.head_dim
        self._x = buffer(most_tokens, model.hidden_size)
        self._normed = buffer(most_tokens, model.hidden_size)
        self._mlp_rows = min(most_tokens, MLP_ROWS)
        # The buffers of attention are not needed any more when the MLP begins, so both have the same memory.
        parts = [most_tokens * width for width in ((heads + 2 * kv_heads) * dim, heads * dim, heads * dim)]
        wide = buffer(max(sum(parts), self._mlp_rows * 2 * model.intermediate_size))
        qkv, queries, attended = torch.split(wide[: sum(parts)], parts)
        self._qkv = qkv.view(most_tokens, -1)
        self._queries, self._attended = queries.view(most_tokens, heads, dim), attended.view(most_tokens, heads, dim)
        self._gate_up = wide[: self._mlp_rows * 2 * model.intermediate_size].view(self._mlp_rows, -1)
        self._inner = buffer(self._mlp_rows, model.intermediate_size)
        self._last_x = buffer(rows, model.hidden_size)
        self._last_attended = buffer(rows, heads * dim)
        self.logits = buffer(rows, model.vocab_size)

    def run(
        self,
        inputs: PassInputs,
        rotation: Rotation,
        attend: AttendFunction,
        wanted: torch.Tensor | None = None,
        logits: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Runs a pass, and returns the logits [rows, vocab] of the tokens at places `wanted` [rows] int32; None: of
        all.

        The answer is a view of `self.logits`, or of `logits`: a buffer for more rows than `rows`.
        """
        self.begin(inputs, rotation, attend)
        return self.end(len(inputs.tokens), wanted, logits)

    def begin(self, inputs: PassInputs, rotation: Rotation, attend: AttendFunction) -> None:
        """Runs a pass up to its last attention: all in which tokens need one another. `end` must follow."""
        count = len(inputs.tokens)
        x, attended = self._x[:count], self._attended[:count]
        torch.index_select(self._embed, 0, inputs.tokens, out=x)
        last = len(self.layers) - 1
        for index in range(last):
            self._attend(index, x, inputs, rotation, attend, attended)
            self._finish(index, x, attended.flatten(1))
        self._attend(last, x, inputs, rotation, attend, attended)

    def end(self, count: int, wanted: torch.Tensor | None, logits: torch.Tensor | None = None) -> torch.Tensor:
        """Runs the rest of the pass for its first `count` tokens, and returns what `run` does."""
        x, flat = self._x[:count], self._attended[:count].flatten(1)
        if wanted is not None:
            rows = len(wanted)
            torch.index_select(x, 0, wanted, out=self._last_x[:rows])
            torch.index_select(flat, 0, wanted, out=self._last_attended[:rows])
            x, flat = self._last_x[:rows], self._last_attended[:rows]
        self._finish(len(self.layers) - 1, x, flat)
        normed = self._normed[: len(x)]
        rms_norm(x, self._norm, self.model.rms_norm_eps, normed)
        out = (self.logits if logits is None else logits)[: len(x)]
        torch.mm(normed, self._head, out=out)
        return out

    def _attend(
        self,
        index: int,
        x: torch.Tensor,
        inputs: PassInputs,
        rotation: Rotation,
        attend: AttendFunction,
        attended: torch.Tensor,
    ) -> None:
        """Fills `attended` [tokens, heads, head_dim], and the pool with the tokens' keys and values."""
        of, count, eps = self.layers[index], len(x), self.model.rms_norm_eps
        normed, qkv, queries = self._normed[:count], self._qkv[:count], self._queries[:count]
        rms_norm(x, of.attn_norm, eps, normed)
        torch.mm(normed, of.qkv, out=qkv)
        rotate_and_write(
            qkv, queries, self.pool[index], rotation, inputs.positions, inputs.slots, of.qkv_bias, of.norms, eps
        )
        attend(index, queries, attended)

    def _finish(self, index: int, x: torch.Tensor, attended: torch.Tensor) -> None:
        """Adds the output projection and the MLP to `x`, in place."""
        of, normed = self.layers[index], self._normed[: len(x)]
        torch.addmm(x, attended, of.o, out=x)
        if of.o_bias is not None:
            x += of.o_bias
        rms_norm(x, of.mlp_norm, self.model.rms_norm_eps, normed)
        for start in range(0, len(x), self._mlp_rows):
            rows = slice(start, start + self._mlp_rows)
            self._mlp(of, x[rows], normed[rows])

    def _mlp(self, of: LayerWeights, x: torch.Tensor, normed: torch.Tensor) -> None:
        gate_up, inner = self._gate_up[: len(x)], self._inner[: len(x)]
        torch.mm(normed, of.gate_up, out=gate_up)
        if of.gate_up_bias is not None:
            gate_up += of.gate_up_bias
        silu_gate(gate_up, inner)
        torch.addmm(x, inner, of.down, out=x)
        if of.down_bias is not None:
            x += of.down_bias


def rotation_table(model: ModelConfig, positions: int, device: torch.device) -> Rotation:
    """Returns the rotation of positions 0 to positions - 1, each as the last one of a sequence."""
    rotary = Rotary(model.rope, model.head_dim, model.max_position_embeddings, torch.empty(0, dtype=torch.float32))
    return halves(rotary.at(torch.arange(positions), positions - 1), device)


def halves(rotation: tuple[torch.Tensor, torch.Tensor], device: torch.device) -> Rotation:
    """Converts `Rotary`'s cosine and signed sine, [positions, head_dim] each, to what the kernel reads."""
    cos, signed_sin = rotation
    half = cos.shape[1] // 2
    return cos[:, :half].contiguous().to(device), signed_sin[:, half:].contiguous().to(device)
