"""The answers of transformers, on any device, and how far from them is too far."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers


def transformers_model(directory: Path, device: torch.device, dtype: torch.dtype) -> Any:
    """Loads a fresh model: dynamic RoPE keeps state from one request to the next."""
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=dtype)
    return model.to(device).eval()


def forced(directory: Path, device: torch.device, dtype: torch.dtype, tokens: Sequence[Sequence[int]]) -> list[Any]:
    """Returns teacher-forced logits of each sequence by itself: [tokens, vocab] float32 on the CPU."""
    model = transformers_model(directory, device, dtype)
    keeps_state = getattr(model.model.rotary_emb, "rope_type", "default") == "dynamic"
    answers = []
    for each in tokens:
        if keeps_state:
            model = transformers_model(directory, device, dtype)
        with torch.no_grad():
            answers.append(model(torch.tensor([each], device=device)).logits[0].float().cpu())
    return answers


def generate(directory: Path, device: torch.device, prompt: Sequence[int], count: int) -> list[int]:
    """Generates greedily, in float32."""
    model = transformers_model(directory, device, torch.float32)
    tokens = torch.tensor([prompt], device=device)
    with torch.no_grad():
        out = model.generate(
            tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=count, min_new_tokens=count, do_sample=False
        )
    return [int(token) for token in out[0, len(prompt) :]]


def error(got: Sequence[torch.Tensor], wanted: Sequence[torch.Tensor]) -> float:
    """Returns the error of all together, relative to what is wanted: a ratio of Euclidean norms. NaN where anything is
    NaN."""
    difference, norm = torch.cat(list(got)) - torch.cat(list(wanted)), torch.cat(list(wanted)).norm()
    return float(difference.norm() / norm)


def random_tokens(length: int, seed: int = 1, vocab: int = 515) -> list[int]:
    source = torch.Generator().manual_seed(seed * 100_003 + length)
    return [int(token) for token in torch.randint(0, vocab, (length,), generator=source)]
