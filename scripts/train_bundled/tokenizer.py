"""The tokenizer: byte-level pairs learned from the corpus, in Hugging Face's layout."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from scripts.train_bundled.corpus import Document

BOS, END, SYSTEM, USER, ASSISTANT, PAD = SPECIAL = (
    "<|bos|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>", "<|pad|>",
)  # fmt: skip
LEAD, LEAD_WEIGHT = 6, 4
"""The first LEAD tokens of an answer or a paragraph count LEAD_WEIGHT times in the loss: there the model decides what
to speak of, and all that follows depends on it."""

CHAT_TEMPLATE = """\
{{- bos_token -}}
{%- for message in messages -%}
{%- if message['role'] not in ['system', 'user', 'assistant'] -%}
{{- raise_exception('The roles are system, user and assistant; got ' + message['role']) -}}
{%- endif -%}
{{- '<|' + message['role'] + '|>' + message['content'] | trim + '<|end|>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|assistant|>' -}}
{%- endif -%}
"""


def learn(texts: Iterable[str], vocabulary: int) -> Tokenizer:
    """Learns `vocabulary` tokens; every byte is one of them, so that any text goes in and comes out unchanged."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    return tokenizer


def special(tokenizer: Tokenizer, token: str) -> int:
    found = tokenizer.token_to_id(token)
    assert found is not None, f"{token} is in every vocabulary that learn() makes"
    return found


def encode(tokenizer: Tokenizer, document: Document) -> tuple[list[int], list[int]]:
    """The document's token ids and their weights in the loss: what users and operators write is read, not learned."""
    ids, weights = [special(tokenizer, BOS)], [0]
    end = special(tokenizer, END)
    for turn in document:
        if turn.role != "text":
            ids.append(special(tokenizer, f"<|{turn.role}|>"))
            weights.append(0)
        said = tokenizer.encode(turn.text, add_special_tokens=False)
        ids += [*said.ids, end]
        if turn.role in ("assistant", "text"):
            weights += [*leading(turn.text, said.offsets), 1]
        else:
            weights += [0] * (len(said.ids) + 1)
    return ids, weights


def leading(text: str, offsets: Iterable[tuple[int, int]]) -> Iterator[int]:
    """The weight of each token, given where in the text it lies."""
    since = 0
    for start, end in offsets:
        since = 0 if "\n" in text[start:end] else since + 1
        yield LEAD_WEIGHT if since <= LEAD else 1


def save(tokenizer: Tokenizer, folder: Path, context: int) -> None:
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": END,
        "pad_token": PAD,
        "add_bos_token": True,
        "clean_up_tokenization_spaces": False,
        "model_max_length": context,
        "chat_template": CHAT_TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def chat_prompt(tokenizer: Tokenizer, question: str) -> torch.Tensor:
    """[1, tokens]: the question as the chat template puts it."""
    said = tokenizer.encode(question, add_special_tokens=False).ids
    before, after = ([special(tokenizer, token) for token in part] for part in ((BOS, USER), (END, ASSISTANT)))
    return torch.tensor([[*before, *said, *after]])
