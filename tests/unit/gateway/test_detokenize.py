"""Text as it grows equals the tokenizer's own, for each way in which vocabularies write text."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from semipd.gateway.detokenize import Detokenizer, DetokenizerFactory, WindowDetokenizer, encoding_of

TEXT = "Grüße, 世界! hello  hello\n😀👍🏽 naïve"


def llama2_tokenizer() -> Tokenizer:
    """SentencePiece BPE with byte fallback, as Llama 2's and Mistral's tokenizer.json has it."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *"helowrd,!"]
    merges = [("h", "e"), ("l", "l"), ("he", "ll"), ("hell", "o"), ("▁", "hello")]
    vocabulary = {piece: n for n, piece in enumerate([*pieces, *(a + b for a, b in merges)])}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken(t, special=True) for t in ("<unk>", "<s>", "</s>")])
    return tokenizer


def metaspace_tokenizer() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.BpeTrainer(special_tokens=["<unk>", "<s>"], vocab_size=120, show_progress=False)
    tokenizer.train_from_iterator([TEXT] * 3, trainer)
    return tokenizer


def wordpiece_tokenizer() -> Tokenizer:
    """A tokenizer of none of the served families: its decoder needs the neighbours."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.WordPiece(cleanup=False)
    trainer = trainers.WordPieceTrainer(special_tokens=["[UNK]", "<s>"], vocab_size=120, show_progress=False)
    tokenizer.train_from_iterator([TEXT] * 3, trainer)
    return tokenizer


def grown(detokenizer: Detokenizer, tokens: Sequence[int]) -> str:
    text = ""
    for token in tokens:
        text += detokenizer.push([token])
        assert "\N{REPLACEMENT CHARACTER}" not in text
    return text + detokenizer.flush()


@pytest.mark.parametrize("make", [llama2_tokenizer, metaspace_tokenizer, wordpiece_tokenizer])
@pytest.mark.parametrize("text", [TEXT, "hello", " hello", "hello hello", "世界"])
def test_output_after_an_invisible_prompt_is_the_tokenizers_text(make: Callable[[], Tokenizer], text: str) -> None:
    tokenizer = make()
    tokens = tokenizer.encode(text, add_special_tokens=False).ids
    assert grown(DetokenizerFactory(tokenizer).make([1]), tokens) == tokenizer.decode(tokens)


@pytest.mark.parametrize("text", [TEXT, "hello", " hello"])
def test_byte_level_output_is_the_tokenizers_text(tokenizer: Tokenizer, text: str) -> None:
    tokens = tokenizer.encode(text, add_special_tokens=False).ids
    for prompt in ([0], tokenizer.encode("hello").ids):
        assert grown(DetokenizerFactory(tokenizer).make(prompt), tokens) == text


@pytest.mark.parametrize("make", [llama2_tokenizer, metaspace_tokenizer, wordpiece_tokenizer])
def test_output_after_words_keeps_the_space_between(make: Callable[[], Tokenizer]) -> None:
    tokenizer = make()
    prompt = tokenizer.encode("hello", add_special_tokens=False).ids
    whole = tokenizer.encode("hello hello", add_special_tokens=False).ids
    text = grown(DetokenizerFactory(tokenizer).make(prompt), whole[len(prompt) :])
    assert tokenizer.decode(prompt) + text == "hello hello"


def test_several_tokens_at_once_read_like_one_after_another(tokenizer: Tokenizer) -> None:
    tokens = tokenizer.encode(TEXT, add_special_tokens=False).ids
    detokenizer = DetokenizerFactory(tokenizer).make([0])
    assert detokenizer.push(tokens) + detokenizer.flush() == TEXT


def test_special_and_unknown_tokens_have_no_text(tokenizer: Tokenizer) -> None:
    hello = tokenizer.encode("hello", add_special_tokens=False).ids
    assert grown(DetokenizerFactory(tokenizer).make([0]), [0, *hello, 319, 1]) == "hello"


@pytest.mark.parametrize("window", [False, True])
def test_invalid_bytes_don_t_hold_the_text_back(tokenizer: Tokenizer, window: bool) -> None:
    """A run of bytes that never becomes a character is told as it comes, in a bounded number of tokens."""
    [_, second, *_] = tokenizer.encode("é", add_special_tokens=False).ids
    detokenizer = WindowDetokenizer(tokenizer, [0]) if window else DetokenizerFactory(tokenizer).make([0])
    told = [detokenizer.push([second]) for _ in range(40)]
    assert sum(len(text) for text in told) >= 36


def test_incomplete_bytes_at_the_end_become_a_replacement_character(tokenizer: Tokenizer) -> None:
    first = tokenizer.encode("é", add_special_tokens=False).ids[:1]
    detokenizer = DetokenizerFactory(tokenizer).make([0])
    assert (detokenizer.push(first), detokenizer.flush()) == ("", "\N{REPLACEMENT CHARACTER}")


def test_added_tokens_are_written_as_they_are(tokenizer: Tokenizer) -> None:
    copy = Tokenizer.from_str(tokenizer.to_str())
    copy.add_tokens([AddedToken("<think> ü", special=False)])
    tokens = copy.encode("hello<think> ühello", add_special_tokens=False).ids
    assert grown(DetokenizerFactory(copy).make([0]), tokens) == copy.decode(tokens) == "hello<think> ühello"


def test_a_decoder_that_is_not_known_is_left_to_the_window() -> None:
    assert encoding_of({"type": "WordPiece", "prefix": "##", "cleanup": True}) is None
    assert encoding_of({"type": "Sequence", "decoders": [{"type": "Fuse"}, {"type": "CTC"}]}) is None
