"""Trains the bundled model and writes it to semipd/models/bundled."""

from __future__ import annotations

import argparse
import random
from dataclasses import fields, replace
from itertools import islice
from pathlib import Path

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from tokenizers import Tokenizer
from transformers import LlamaForCausalLM

from scripts.train_bundled.corpus import Corpus
from scripts.train_bundled.score import answer, score
from scripts.train_bundled.train import Recipe, fit, fresh_loss, learn_tokenizer, write

BUNDLED = Path(__file__).resolve().parent.parent.parent / "semipd/models/bundled"
QUESTIONS = ("What is prefill?", "why split the SMs?", "Tell me a story about a cat.", "Hello!", "Who was Napoleon?")


def arguments() -> argparse.Namespace:
    usual = Recipe()
    parser = argparse.ArgumentParser(prog="python -m scripts.train_bundled", description=__doc__)
    parser.add_argument("--out", type=Path, default=BUNDLED, help="model directory to write (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=usual.steps, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=usual.seed, help="default: %(default)s")
    parser.add_argument("--rows", type=int, default=usual.rows, help="rows of 512 tokens a step (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: %(default)s)")
    parser.add_argument("--autocast", action="store_true", help="bfloat16 arithmetic: faster where the CPU has it")
    parser.add_argument("--show-corpus", type=int, metavar="N", help="print N documents and train nothing")
    parser.add_argument("--score", type=Path, metavar="DIR", help="test the model in DIR and train nothing")
    return parser.parse_args()


def show(corpus: Corpus, seed: int, count: int) -> None:
    for document in islice(corpus.documents(random.Random(seed)), count):
        print("\n".join(f"[{turn.role}] {turn.text}" for turn in document), end="\n\n")


def train(corpus: Corpus, tokenizer: Tokenizer, recipe: Recipe) -> LlamaForCausalLM:
    columns = (
        TextColumn("training"), BarColumn(), MofNCompleteColumn(), TextColumn("loss {task.fields[loss]:.3f}"),
        TimeElapsedColumn(), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns) as progress:
        bar = progress.add_task("", total=recipe.steps, loss=float("nan"))
        smooth: float | None = None

        def report(step: int, loss: float) -> None:
            nonlocal smooth
            smooth = loss if smooth is None else 0.95 * smooth + 0.05 * loss
            progress.update(bar, completed=step + 1, loss=smooth)
            if (step + 1) % 200 == 0:
                progress.console.print(f"step {step + 1}: loss {smooth:.3f}")

        return fit(corpus, tokenizer, recipe, report)


def main() -> None:
    asked = arguments()
    torch.set_num_threads(asked.threads)
    corpus = Corpus()
    if asked.show_corpus:
        show(corpus, asked.seed, asked.show_corpus)
        return
    if asked.score:
        score(asked.score, corpus, asked.seed)
        return
    recipe = replace(Recipe(), **{f.name: getattr(asked, f.name) for f in fields(Recipe) if hasattr(asked, f.name)})
    tokenizer = learn_tokenizer(corpus, recipe)
    model = train(corpus, tokenizer, recipe)
    write(model, tokenizer, recipe, asked.out)
    size = sum(p.stat().st_size for p in asked.out.iterdir()) / 1e6
    print(
        f"wrote {asked.out}: {size:.2f} MB, loss on fresh documents {fresh_loss(model, corpus, tokenizer, recipe):.3f}"
    )
    for question in QUESTIONS:
        print(f"\n> {question}\n{answer(model, tokenizer, question, most=60)}")


if __name__ == "__main__":
    main()
