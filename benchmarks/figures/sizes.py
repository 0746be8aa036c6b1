"""Sizes of everything: for the H200, and tiny, so that the same code runs on a CPU in seconds."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

LLAMA_3_8B: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 128256,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "max_position_embeddings": 8192,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "attention_bias": False,
    "mlp_bias": False,
    "torch_dtype": "bfloat16",
}

SMALL_LLAMA: dict[str, Any] = {
    **LLAMA_3_8B,
    "hidden_size": 512,
    "intermediate_size": 1024,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "vocab_size": 4096,
}


@dataclass(frozen=True, slots=True)
class Scale:
    """Lengths in tokens, times in seconds, rates a second."""

    name: str
    model: dict[str, Any]
    server: dict[str, str]
    """Options of every server, by the name of the ServerConfig's field."""
    clients: int | None
    """Load processes; None: the load generator's default."""
    start_s: float
    """Seconds in which a server must start."""
    decode_steps: tuple[tuple[int, int], ...]
    """(requests, tokens of context of each)."""
    prefills: tuple[int, ...]
    alone_prompt: int
    alone_output: int
    alone_requests: int
    batch: int
    """Sequences that decode all along, in the sections that need a steady batch."""
    batch_context: int
    batch_output: int
    long_prompt: int
    long_prompts_rate: float
    settle_s: float
    window_s: float
    """Seconds of measurement in one state."""
    interference_s: float
    """Seconds of each half."""
    splits: tuple[tuple[float, float], tuple[float, float]]
    """(prefill, decode) in percent, between which is switched."""
    switches_per_s: float
    shortest_prefill_s: float
    """Least seconds of half a long prompt. It bounds how many are written down to keep the prefill worker busy."""
    traces: float
    """All lengths of the traces are multiplied by it."""
    rates: dict[str, tuple[float, ...]]
    run_s: dict[str, float]
    """Arrivals in a run of the trace."""
    fault_rate: float
    fault_lengths: float
    """Lengths relative to the trace's, like `traces`."""
    fault_s: float
    """Seconds from one fault to the next, and from the last to the end."""
    limits_s: dict[str, float] = field(default_factory=dict)
    """Limits of the sections that need another limit than the others."""


FULL = Scale(
    name="full",
    model=LLAMA_3_8B,
    server={"gateways": "8"},
    clients=None,
    start_s=180.0,
    decode_steps=((64, 1024), (1, 512), (16, 1024), (128, 1024), (64, 4096), (256, 340), (400, 340)),
    prefills=(2048, 256, 512, 1024, 4096, 8192),
    alone_prompt=251,
    alone_output=64,
    alone_requests=20,
    batch=64,
    batch_context=512,
    batch_output=1024,
    long_prompt=4000,
    long_prompts_rate=2.0,
    settle_s=3.0,
    window_s=5.0,
    interference_s=15.0,
    splits=((64.0, 36.0), (52.0, 48.0)),
    switches_per_s=20.0,
    shortest_prefill_s=0.03,
    traces=1.0,
    rates={"chat": (50.0, 56.0, 64.0, 73.0), "mixed": (25.0, 32.0, 42.0), "long": (6.8, 8.0, 9.5)},
    run_s={"chat": 20.0, "mixed": 20.0, "long": 30.0},
    fault_rate=20.0,
    fault_lengths=1.0,
    fault_s=15.0,
    limits_s={"engine": 180.0, "chat": 300.0, "mixed": 300.0, "long": 300.0, "mps": 180.0, "fault": 150.0},
)

TINY = Scale(
    name="tiny",
    model=SMALL_LLAMA,
    server={"device": "cpu", "kv_memory_gb": "0.2", "max_batch_tokens": "128"},
    clients=1,
    start_s=60.0,
    decode_steps=((2, 32),),
    prefills=(64,),
    alone_prompt=16,
    alone_output=8,
    alone_requests=3,
    batch=4,
    batch_context=16,
    batch_output=200,
    long_prompt=200,
    long_prompts_rate=2.0,
    settle_s=1.0,
    window_s=1.0,
    interference_s=1.5,
    splits=((50.0, 50.0), (100.0, 100.0)),
    switches_per_s=10.0,
    shortest_prefill_s=0.005,
    traces=0.05,
    rates={"chat": (4.0, 8.0), "mixed": (4.0,), "long": (2.0,)},
    run_s={"chat": 1.5, "mixed": 1.5, "long": 1.5},
    fault_rate=4.0,
    fault_lengths=0.5,
    fault_s=3.0,
)


def model_directory(scale: Scale, folder: Path) -> Path:
    """A checkpoint's folder with config.json and nothing else: `--load-format dummy` makes the weights, and without a
    tokenizer token ids alone go in and out."""
    path = folder / ("llama-3-8b-shape" if scale is FULL else "small-llama")
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps(scale.model, indent=1) + "\n")
    return path
