"""Turns tokens into text as they come: never half a character, and each token looked at once.

There are two ways. Where each token stands for fixed bytes (byte-level BPE, SentencePiece with byte fallback: all the
families that are served), the bytes go through an incremental UTF-8 decoder. With any other decoder, the text of a
short window of tokens is compared with what it was (the prefix and read offsets of text-generation-inference).
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from tokenizers import AddedToken, Tokenizer

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
LONGEST_CHARACTER = 4
"""Bytes in UTF-8, and so the most tokens that one character is spread over."""
CONTEXT = 6
"""Tokens that a windowed detokeniser looks back at: decoders treat the beginning of a text in their own way."""


class Detokenizer(Protocol):
    """Makes one sample's text. What comes out is final, and joined it is the whole text."""

    def push(self, tokens: Sequence[int]) -> str:
        """Takes the next tokens and returns the text that is certain now; empty: none yet."""
        ...

    def flush(self) -> str:
        """Returns the rest at the sample's end; incomplete bytes become U+FFFD."""
        ...


class TokenBytes:
    """Knows the bytes of each token, looked up once. All samples share it."""

    def __init__(self, tokenizer: Tokenizer, encoding: VocabularyEncoding) -> None:
        self._tokenizer = tokenizer
        self._encoding = encoding
        added: dict[int, AddedToken] = tokenizer.get_added_tokens_decoder()
        self._special = frozenset(i for i, token in added.items() if token.special)
        self._known: dict[int, bytes] = {}

    def __getitem__(self, token: int) -> bytes:
        """Returns the token's bytes: none for special tokens, and for ids that the tokenizer doesn't know (of a padded
        vocabulary)."""
        piece = self._known.get(token)
        if piece is None:
            text = None if token in self._special else self._tokenizer.id_to_token(token)
            piece = self._known[token] = b"" if text is None else self._encoding.to_bytes(text)
        return piece

    def starts_text(self, prompt: Sequence[int]) -> bool:
        """Says that nothing visible stands before the output. Then the tokenizer made its first space."""
        return self._encoding.strips_first_space and all(token in self._special for token in prompt)


class VocabularyEncoding(Protocol):
    """The way in which a vocabulary writes bytes as characters."""

    @property
    def strips_first_space(self) -> bool: ...

    def to_bytes(self, token: str) -> bytes: ...


class ByteLevelEncoding:
    """The encoding of GPT-2: a printable character stands for each byte."""

    strips_first_space = False

    def __init__(self) -> None:
        printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
        others = [byte for byte in range(256) if byte not in printable]
        self._bytes = {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}

    def to_bytes(self, token: str) -> bytes:
        try:
            return bytes([self._bytes[character] for character in token])
        except KeyError:  # an added token, which is written as it is
            return token.encode()


class SentencePieceEncoding:
    """The encoding of SentencePiece: U+2581 for a space and, with byte fallback, <0x0A> for a byte."""

    def __init__(self, *, byte_fallback: bool, strips_first_space: bool) -> None:
        self._byte_fallback = byte_fallback
        self.strips_first_space = strips_first_space

    def to_bytes(self, token: str) -> bytes:
        if self._byte_fallback and len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
            try:
                return bytes([int(token[3:5], 16)])
            except ValueError:
                pass
        return token.replace("\N{LOWER ONE EIGHTH BLOCK}", " ").encode()


def encoding_of(decoder: Mapping[str, Any]) -> VocabularyEncoding | None:
    """Reads the decoder object of a tokenizer.json. None: its tokens don't stand for fixed bytes."""
    steps = decoder["decoders"] if decoder["type"] == "Sequence" else [decoder]
    kinds = [step["type"] for step in steps]
    if kinds == ["ByteLevel"]:
        return ByteLevelEncoding()
    if kinds == ["Metaspace"]:
        if steps[0].get("replacement") != "▁":
            return None
        return SentencePieceEncoding(byte_fallback=False, strips_first_space=steps[0].get("prepend_scheme") != "never")
    if "Replace" not in kinds or not set(kinds) <= {"Replace", "ByteFallback", "Fuse", "Strip"}:
        return None
    strips = False
    for step in steps:
        match step:
            case {"type": "Replace", "pattern": {"String": "▁"}, "content": " "} | {"type": "ByteFallback" | "Fuse"}:
                pass
            case {"type": "Strip", "content": " ", "start": 0 | 1 as start, "stop": 0}:
                strips = start == 1
            case _:
                return None
    return SentencePieceEncoding(byte_fallback="ByteFallback" in kinds, strips_first_space=strips)


class ByteDetokenizer:
    """Decodes the bytes of the tokens, whatever characters their borders cut."""

    def __init__(self, pieces: TokenBytes, *, starts_text: bool) -> None:
        self._pieces = pieces
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._strip = starts_text

    def push(self, tokens: Sequence[int]) -> str:
        pieces = self._pieces
        text = self._decoder.decode(
            pieces[tokens[0]] if len(tokens) == 1 else b"".join([pieces[token] for token in tokens])
        )
        return self._stripped(text) if self._strip and text else text

    def flush(self) -> str:
        return self._decoder.decode(b"", final=True)

    def _stripped(self, text: str) -> str:
        self._strip = False
        return text.removeprefix(" ")


class WindowDetokenizer:
    """Works with any decoder: it compares the text of the last tokens with what that was.

    `_window[:_read]` has been told, and `_told` is its text.
    """

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self._window = list(prompt[-CONTEXT:])
        self._read = len(self._window)
        self._told = self._text()

    def _text(self) -> str:
        text: str = self._tokenizer.decode(self._window, skip_special_tokens=True)
        return text

    def push(self, tokens: Sequence[int]) -> str:
        return "".join([self._push_one(token) for token in tokens])

    def _push_one(self, token: int) -> str:
        self._window.append(token)
        text = self._text()
        waiting = len(self._window) - self._read
        if text.endswith(REPLACEMENT) and waiting < LONGEST_CHARACTER:
            return ""
        return self._tell(text) if len(text) > len(self._told) or waiting >= LONGEST_CHARACTER else ""

    def flush(self) -> str:
        return self._tell(self._text())

    def _tell(self, text: str) -> str:
        new = text[len(self._told) :]
        self._window = self._window[-CONTEXT:]
        self._read = len(self._window)
        self._told = self._text()
        return new


class DetokenizerFactory:
    """Makes a Detokenizer for each sample of a request, in the way that fits the tokenizer."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        decoder = tokenizer.decoder
        encoding = encoding_of(json.loads(decoder.__getstate__())) if decoder is not None else None
        self._pieces = TokenBytes(tokenizer, encoding) if encoding else None

    def make(self, prompt: Sequence[int]) -> Detokenizer:
        """Makes the one for output that follows `prompt`."""
        if self._pieces is None:
            return WindowDetokenizer(self._tokenizer, prompt)
        return ByteDetokenizer(self._pieces, starts_text=self._pieces.starts_text(prompt))
