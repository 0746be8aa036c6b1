"""The training: packs documents into rows, runs the optimisers, and writes a Hugging Face model directory."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

from scripts.train_bundled.corpus import Corpus
from scripts.train_bundled.tokenizer import BOS, END, PAD, encode, learn, save

ROPE_THETA = 10000.0
CONFIG_FIELDS = (
    "attention_bias", "bos_token_id", "eos_token_id", "head_dim", "hidden_act", "hidden_size", "initializer_range",
    "intermediate_size", "max_position_embeddings", "mlp_bias", "model_type", "num_attention_heads",
    "num_hidden_layers", "num_key_value_heads", "pad_token_id", "rms_norm_eps", "tie_word_embeddings", "vocab_size",
)  # fmt: skip


@dataclass(frozen=True)
class Recipe:
    """Everything that shapes the result. With the same recipe on the same machine, the same weights come out."""

    steps: int = 3500
    row: int = 512
    """Tokens a row; documents are packed into rows one after another."""
    rows: int = 2
    long_every: int = 8
    """Every so many steps, one row of the whole context instead, so that no distance in it is new to the model."""
    seed: int = 1
    autocast: bool = False
    """bfloat16 arithmetic, where the CPU has it: a third faster."""

    vocabulary: int = 2048
    hidden: int = 192
    layers: int = 6
    heads: int = 6
    kv_heads: int = 2
    feed_forward: int = 512
    context: int = 2048

    matrix_rate: float = 0.015
    """Muon's learning rate, for the matrices within the layers."""
    other_rate: float = 0.003
    """AdamW's, for embeddings and norms."""

    def rate(self, step: int) -> float:
        """The part of the learning rates that a step gets: a short rise, then a cosine down to a fiftieth."""
        rise = min(1.0, (step + 1) / 100)
        return rise * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / self.steps)))


def model_config(recipe: Recipe, tokenizer: Tokenizer) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=recipe.hidden,
        intermediate_size=recipe.feed_forward,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.kv_heads,
        head_dim=recipe.hidden // recipe.heads,
        max_position_embeddings=recipe.context,
        rope_parameters={"rope_type": "default", "rope_theta": ROPE_THETA},
        tie_word_embeddings=True,
        attention_bias=False,
        initializer_range=0.02,
        bos_token_id=tokenizer.token_to_id(BOS),
        eos_token_id=tokenizer.token_to_id(END),
        pad_token_id=tokenizer.token_to_id(PAD),
    )


def learn_tokenizer(corpus: Corpus, recipe: Recipe) -> Tokenizer:
    documents = islice(corpus.documents(random.Random(recipe.seed)), 20_000)
    return learn((turn.text for document in documents for turn in document), recipe.vocabulary)


def batches(corpus: Corpus, tokenizer: Tokenizer, recipe: Recipe, seed: int) -> Iterator[torch.Tensor]:
    """[2, rows, tokens]: ids and weights, for each step. Documents follow each other without padding."""
    documents = corpus.documents(random.Random(seed))
    ids: list[int] = []
    weights: list[int] = []
    for step in range(recipe.steps):
        rows, row = (1, recipe.context) if (step + 1) % recipe.long_every == 0 else (recipe.rows, recipe.row)
        while len(ids) < rows * row:
            more_ids, more_weights = encode(tokenizer, next(documents))
            ids += more_ids
            weights += more_weights
        yield torch.tensor([ids[: rows * row], weights[: rows * row]]).view(2, rows, row)
        del ids[: rows * row], weights[: rows * row]


def optimisers(model: LlamaForCausalLM, recipe: Recipe) -> list[torch.optim.Optimizer]:
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    others = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    return [
        torch.optim.Muon(matrices, lr=recipe.matrix_rate, weight_decay=0.01, momentum=0.95, adjust_lr_fn="original"),
        torch.optim.AdamW(others, lr=recipe.other_rate, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def fit(corpus: Corpus, tokenizer: Tokenizer, recipe: Recipe, report: Callable[[int, float], None]) -> LlamaForCausalLM:
    """Trains a model from nothing; calls `report(step, loss)` after every step."""
    torch.manual_seed(recipe.seed)
    model = LlamaForCausalLM(model_config(recipe, tokenizer))
    working = optimisers(model, recipe)
    for step, (ids, weights) in enumerate(batches(corpus, tokenizer, recipe, seed=recipe.seed + 1)):
        for optimiser, full in zip(working, (recipe.matrix_rate, recipe.other_rate), strict=True):
            for group in optimiser.param_groups:
                group["lr"] = full * recipe.rate(step)
        with precision(recipe):
            loss = weighted_loss(model, ids, weights)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimiser in working:
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        report(step, loss.item())
    model.train(False)
    return model


def precision(recipe: Recipe) -> AbstractContextManager[object]:
    return torch.autocast("cpu", dtype=torch.bfloat16) if recipe.autocast else nullcontext()


def weighted_loss(model: LlamaForCausalLM, ids: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Nats a token, in the mean over weights; `ids` and `weights` are [rows, tokens]."""
    seen = model.model(input_ids=ids).last_hidden_state[:, :-1]  # [rows, tokens - 1, hidden]
    targets, weights = ids[:, 1:], weights[:, 1:]
    learned = weights > 0
    losses = torch.nn.functional.cross_entropy(model.lm_head(seen[learned]).float(), targets[learned], reduction="none")
    return (losses * weights[learned]).sum() / weights.sum()


@torch.no_grad()
def fresh_loss(model: LlamaForCausalLM, corpus: Corpus, tokenizer: Tokenizer, recipe: Recipe) -> float:
    """Nats a token on documents that were not trained on (new combinations of the same texts)."""
    losses = [
        float(weighted_loss(model, ids, weights.clamp(max=1)))
        for ids, weights in islice(batches(corpus, tokenizer, recipe, seed=recipe.seed + 1_000_000), 16)
    ]
    return sum(losses) / len(losses)


def config_file(config: LlamaConfig) -> dict[str, object]:
    """config.json as older readers know it too: `rope_theta` and `torch_dtype` under their first names."""
    values: dict[str, object] = {name: getattr(config, name) for name in CONFIG_FIELDS}
    values |= {"architectures": ["LlamaForCausalLM"], "rope_theta": ROPE_THETA, "torch_dtype": "bfloat16"}
    return dict(sorted(values.items()))


def as_json(values: dict[str, object]) -> str:
    return json.dumps(values, indent=2) + "\n"


def write(model: LlamaForCausalLM, tokenizer: Tokenizer, recipe: Recipe, folder: Path) -> None:
    """config.json, generation_config.json, model.safetensors (bfloat16) and the tokenizer's files."""
    folder.mkdir(parents=True, exist_ok=True)
    save(tokenizer, folder, recipe.context)
    config = model_config(recipe, tokenizer)
    (folder / "config.json").write_text(as_json(config_file(config)), encoding="utf-8")
    ends = {name: getattr(config, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    generation = {**ends, "do_sample": True, "temperature": 0.7, "top_p": 0.95}
    (folder / "generation_config.json").write_text(as_json(generation), encoding="utf-8")
    # The output matrix is the embedding's, so it is left out.
    weights = {n: t.to(torch.bfloat16).contiguous() for n, t in model.state_dict().items() if n != "lm_head.weight"}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)
