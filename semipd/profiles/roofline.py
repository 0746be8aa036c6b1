"""A latency model from a device's peak rates and a model's shape, where nothing was measured.

A pass takes as long as its arithmetic, a step as long as reading its weights and KV (Williams, Waterman and Patterson,
"Roofline", 2009).
How much of a peak is reached was read off the profile that ships, of an H200 with Llama-3-8B; a server soon fits the
level to what it observes, and keeps the shape.
"""

from __future__ import annotations

import math

from semipd.core.latency import Knots, LatencyModel, Slowdown
from semipd.core.model import ModelConfig
from semipd.profiles.hardware import Hardware

# The parts of a peak that are reached, and what is lost besides.
PRODUCTS = 0.65
"""The part of the peak that matrix products reach. Under load a card does not keep its highest clock, and tiles don't
fill its SMs."""
ATTENTION = 0.40
"""The part of the same peak that attention reaches: half of it is softmax and masking, which are no matrix products."""
READING = 0.95
"""The part of the memory's bandwidth that reading weights and KV reaches; the rest is refresh and changes of rows."""
CPU_PRODUCTS = 0.50
"""The part of a CPU's peak that matrix products reach: those of few rows don't fill its vector units."""

STEP_LAYER_S = 45e-6
"""Seconds of a decode step's layer besides reading: a captured graph has some ten kernels a layer, and each of them
begins when the one before it has ended everywhere."""
EAGER_LAYER_S = 350e-6
"""The least seconds of a layer whose kernels are launched one by one: Python makes some ten launches."""
CPU_LAYER_S = 250e-6
"""The least seconds of a layer on a CPU: Python makes some twenty calls of torch."""
PASS_FIXED = 0.55
"""The fixed part of a pass, of the time to read the weights: the rest of the reading is hidden behind arithmetic."""
MIXED_FIXED = 0.75
"""The fixed part of a mixed batch, of the time to read the weights."""

# What a share costs.
FRACTIONS = tuple(eighths / 8 for eighths in range(1, 9))
CLOCK = 0.87
"""Arithmetic on a part r of a GPU takes r ** -0.87 as long: fewer SMs run at a higher clock."""
SATURATION = 0.25
"""The part of a GPU's SMs that reads 70 % of its bandwidth."""
CONTENDED = 1.25
"""The factor by which anything takes longer while the other phase computes on SMs of its own: both share bandwidth and
power."""
CONTENDED_ROWS = 1.6
"""The same of a decode step's rows, whose small products suffer most."""
UNDIVIDED = 2.0
"""The same of a decode step where prefill may use all SMs: prefill's passes fill them."""
OVERLAP = 0.5
"""The part of SMs that both phases may use which each gets."""

TILE = 128
"""Tokens: the height of a tile of a GPU's matrix products, and about that of a block of a CPU's."""


def roofline(hardware: Hardware, model: ModelConfig, item_bytes: int) -> LatencyModel:
    """Returns the latency model of a model whose numbers have `item_bytes` bytes each."""
    products = hardware.flops * (PRODUCTS if hardware.on_gpu else CPU_PRODUCTS)
    embedding = model.vocab_size * model.hidden_size
    used = model.parameters - (0 if model.tied_embeddings else embedding)  # a step reads the output projection whole,
    layers = used - embedding  # and of the embedding one row a token; a pass projects its last tokens alone
    layer_s = STEP_LAYER_S if hardware.on_gpu else CPU_LAYER_S
    weights_s = used * item_bytes / (READING * hardware.bytes_per_s) + model.layers * layer_s
    kv_bytes = 2 * model.layers * model.kv_heads * model.head_dim * item_bytes
    pair_flops = 4 * model.layers * model.heads * model.head_dim  # queries by keys, and weights by values
    token_s = 2 * layers / products
    return LatencyModel(
        token_s=token_s,
        batch_s=PASS_FIXED * weights_s,
        launch_s=weights_s,
        eager_s=max(weights_s, model.layers * EAGER_LAYER_S) if hardware.on_gpu else weights_s,
        attention_s=pair_flops / (hardware.flops * ATTENTION),
        weights_s=weights_s,
        row_s=token_s,
        kv_s=kv_bytes / (READING * hardware.bytes_per_s),
        mixed_batch_s=MIXED_FIXED * weights_s,
        prefill_slowdown=_prefill_slowdown(hardware.on_gpu),
        decode_slowdown=_decode_slowdown(hardware.on_gpu),
        tile_tokens=TILE,
    )


def _arithmetic(fraction: float, on_gpu: bool) -> float:
    return math.pow(fraction, -CLOCK if on_gpu else -1.0)


def _reading(fraction: float) -> float:
    return math.hypot(1.0, SATURATION / fraction) / math.hypot(1.0, SATURATION)


def _prefill_slowdown(on_gpu: bool) -> Slowdown:
    alone: Knots = tuple((fraction, (_arithmetic(fraction, on_gpu),)) for fraction in FRACTIONS)
    return Slowdown(alone, ((1.0, (CONTENDED,)),), OVERLAP)


def _decode_slowdown(on_gpu: bool) -> Slowdown:
    """Attention over KV slows down as arithmetic does: each SM reads a sequence's KV by itself."""
    alone: Knots = tuple((f, (_reading(f), _arithmetic(f, on_gpu), _arithmetic(f, on_gpu))) for f in FRACTIONS)
    beside = (FRACTIONS[-2], (CONTENDED, CONTENDED_ROWS, CONTENDED))
    return Slowdown(alone, (beside, (1.0, (UNDIVIDED,) * 3)), OVERLAP)
