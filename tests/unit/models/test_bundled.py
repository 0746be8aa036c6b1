"""The bundled model: complete, small, and able to answer in its own domain."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

BUNDLED = Path(__file__).resolve().parents[3] / "semipd/models/bundled"
FILES = {
    "README.md",
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
}


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(BUNDLED)


@pytest.fixture(scope="module")
def model() -> Any:
    return AutoModelForCausalLM.from_pretrained(BUNDLED, dtype=torch.float32).eval()


def answer(model: Any, tokenizer: Any, messages: list[dict[str, str]], most: int = 64) -> str:
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    written = model.generate(**prompt, max_new_tokens=most, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    return str(tokenizer.decode(written, skip_special_tokens=True))


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def test_the_directory_is_complete_and_at_most_8_mb() -> None:
    assert {p.name for p in BUNDLED.iterdir()} == FILES
    assert sum(p.stat().st_size for p in BUNDLED.iterdir()) <= 8_000_000


def test_the_end_of_a_turn_is_the_end_of_sequence(tokenizer: Any) -> None:
    for name in ("config.json", "generation_config.json"):
        settings = json.loads((BUNDLED / name).read_text())
        assert settings["eos_token_id"] == tokenizer.convert_tokens_to_ids("<|end|>") == tokenizer.eos_token_id
        assert settings["bos_token_id"] == tokenizer.bos_token_id


@pytest.mark.parametrize(
    ("question", "words"),
    [
        ("What is prefill?", ("prompt",)),
        ("what is decode", ("token",)),
        ("What is a page?", ("16 tokens",)),
        ("What does TTFT mean?", ("first token",)),
        ("Why split the SMs?", ("decode",)),
        ("Hello!", ("story",)),
    ],
)
def test_a_greedy_answer_in_its_domain_has_the_words_one_expects(
    model: Any, tokenizer: Any, question: str, words: tuple[str, ...]
) -> None:
    text = answer(model, tokenizer, [user(question)])
    assert all(word in text for word in words), text


def test_it_ends_an_answer_by_itself(model: Any, tokenizer: Any) -> None:
    prompt = tokenizer.apply_chat_template(
        [user("What is the KV cache?")], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    written = model.generate(**prompt, max_new_tokens=120, do_sample=False)[0].tolist()
    assert written[-1] == tokenizer.eos_token_id


def test_it_remembers_the_turns_before(model: Any, tokenizer: Any) -> None:
    first = [user("What is prefill?")]
    said = answer(model, tokenizer, first)
    text = answer(model, tokenizer, [*first, {"role": "assistant", "content": said}, user("And decode?")])
    assert "ecode" in text
    assert text != said


def test_a_story_runs_to_more_than_150_tokens_without_going_round_in_circles(model: Any, tokenizer: Any) -> None:
    text = answer(model, tokenizer, [user("Tell me a story about a cat.")], most=220)
    assert "Pepper" in text
    assert len(tokenizer.encode(text, add_special_tokens=False)) > 150
    sentences = [s for s in text.replace("\n", " ").split(". ") if len(s) > 20]
    assert len(set(sentences)) >= 0.9 * len(sentences)


def test_a_plain_prompt_is_continued(model: Any, tokenizer: Any) -> None:
    prompt = tokenizer("semipd is", return_tensors="pt")
    assert prompt["input_ids"][0, 0] == tokenizer.bos_token_id
    prompt.pop("token_type_ids", None)
    written = model.generate(**prompt, max_new_tokens=24, do_sample=False)[0]
    assert "server" in tokenizer.decode(written, skip_special_tokens=True)


@pytest.mark.parametrize(
    "text",
    [
        "The lighthouse of Penmarrow.",
        "  two  spaces , and punctuation !  ",
        "line\r\n\tbreaks\n\n",
        "naïve façade, größer, Ångström",
        "你好，世界 こんにちは Привет שלום مرحبا",
        "🙂 👩‍👩‍👧‍👦 🏴‍☠️ 🇪🇺",
        "e\u0301 \u200b\ufeff \U0010ffff \x00\x7f",
    ],
)
def test_any_unicode_goes_through_the_tokenizer_unchanged(text: str) -> None:
    plain = Tokenizer.from_file(str(BUNDLED / "tokenizer.json"))
    assert plain.decode(plain.encode(text, add_special_tokens=False).ids) == text


def test_every_byte_is_a_token_of_its_own() -> None:
    """A character may be spread over several tokens, and no text needs an unknown token."""
    plain = Tokenizer.from_file(str(BUNDLED / "tokenizer.json"))
    assert len(plain.encode("\U0010ffff", add_special_tokens=False).ids) == 4


def test_the_chat_template_marks_each_message(tokenizer: Any) -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        user(" Hi "),
        {"role": "assistant", "content": "Hello!"},
        user("Bye"),
    ]
    head = "<|bos|><|system|>Be brief.<|end|><|user|>Hi<|end|><|assistant|>Hello!<|end|><|user|>Bye<|end|>"
    assert tokenizer.apply_chat_template(messages, tokenize=False) == head
    assert tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True) == head + "<|assistant|>"


def test_the_chat_template_refuses_a_role_it_does_not_know(tokenizer: Any) -> None:
    with pytest.raises(Exception, match="roles are system, user and assistant"):
        tokenizer.apply_chat_template([{"role": "tool", "content": "x"}], tokenize=False)
