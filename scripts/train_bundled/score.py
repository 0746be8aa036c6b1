"""Counts how often a greedy answer speaks of what was asked: `python -m scripts.train_bundled --score DIR`.

The questions are those of the training text, so this measures what was learned, not what the model makes of new words.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import LlamaForCausalLM

from scripts.train_bundled.corpus import ASKING, ASKING_STORY, Corpus, typed
from scripts.train_bundled.tokenizer import chat_prompt

OPENING = 25
"""Characters by which the opening of a story is known. Plots that open alike are not told apart."""

Question = tuple[str, Callable[[str], bool]]
"""A question, and a test whether the beginning of an answer belongs to it."""


def questions(corpus: Corpus, rng: random.Random) -> dict[str, list[Question]]:
    """Two of each kind for each topic, three for each kind of small talk, one for each subject of a story."""

    def begins(answers: Sequence[str]) -> Callable[[str], bool]:
        return lambda said: any(answer.startswith(said) for answer in answers)

    twice = [*corpus.serving, *corpus.serving]
    asked = {
        "by name": [(rng.choice(ASKING).format(rng.choice(t.names)), begins(t.answers)) for t in twice if t.names],
        "by question": [(rng.choice(t.questions), begins(t.answers)) for t in twice if t.questions],
        "with slips": [(typed(rng.choice(t.questions), rng), begins(t.answers)) for t in twice if t.questions],
        "small talk": [(q, begins(t.answers)) for t in corpus.small_talk for q in rng.sample(t.questions, 3)],
    }
    stories: list[Question] = []
    for plot in corpus.book.plots:
        openings = tuple({corpus.book.tell(plot, rng)[:OPENING] for _ in range(400)})
        stories += [
            (rng.choice(ASKING_STORY).format(subject), lambda said, known=openings: said[:OPENING] in known)  # type: ignore[misc]
            for subject in plot.subjects
        ]
    return {**asked, "stories": stories}


def score(folder: Path, corpus: Corpus, seed: int) -> None:
    """Prints, for each kind of question, how many were asked and the share that was understood."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    for kind, asked in questions(corpus, random.Random(seed)).items():
        length = 24 if kind == "stories" else 10
        right = sum(belongs(answer(model, tokenizer, question, length)) for question, belongs in asked)
        print(f"{kind:12} {len(asked):4} asked  {right / len(asked):6.1%} understood")


def answer(model: LlamaForCausalLM, tokenizer: Tokenizer, question: str, most: int) -> str:
    """The first `most` tokens of the greedy answer."""
    prompt = chat_prompt(tokenizer, question)
    # transformers annotates `self` with a protocol that its own models don't meet.
    whole = model.generate(prompt, max_new_tokens=most, do_sample=False)  # type: ignore[misc]
    return str(tokenizer.decode(whole[0, prompt.shape[1] :].tolist()))
