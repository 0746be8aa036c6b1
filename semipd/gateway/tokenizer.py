"""The checkpoint's tokenizer. Long texts are encoded and decoded outside the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tokenizers import Tokenizer

from semipd.core.errors import CheckpointError
from semipd.gateway.detokenize import Detokenizer, DetokenizerFactory

INLINE_CHARACTERS = 4096
INLINE_TOKENS = 4096
"""Sizes up to which a thread would cost more than it saves (about a millisecond of work)."""


class ServedTokenizer:
    """Encodes and decodes whole texts, and makes detokenizers. Close it to end its threads."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._tokenizer = tokenizer
        self._detokenizers = DetokenizerFactory(tokenizer)
        self._threads = ThreadPoolExecutor(2, thread_name_prefix="tokenizer")

    @classmethod
    def of_checkpoint(cls, directory: Path) -> ServedTokenizer | None:
        """Reads tokenizer.json. None: there is none, and the model is served with token ids alone.

        Raises CheckpointError if the file is broken.
        """
        path = directory / "tokenizer.json"
        if not path.is_file():
            return None
        try:
            return cls(Tokenizer.from_file(str(path)))
        except Exception as error:  # the library raises bare Exception
            raise CheckpointError(f"{path.name}: cannot be read: {error}") from error

    async def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Returns the token ids. `add_special_tokens`: with those that the checkpoint puts around a prompt."""
        if len(text) <= INLINE_CHARACTERS:
            return self._encode(text, add_special_tokens)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, self._encode, text, add_special_tokens)

    def _encode(self, text: str, add_special_tokens: bool) -> list[int]:
        # The batch call lets go of the interpreter's lock while it works.
        [encoding] = self._tokenizer.encode_batch_fast([text], add_special_tokens=add_special_tokens)
        ids: list[int] = encoding.ids
        return ids

    async def decode(self, tokens: Sequence[int], *, skip_special_tokens: bool) -> str:
        """Returns the whole text at once."""
        if len(tokens) <= INLINE_TOKENS:
            return self._decode(tokens, skip_special_tokens)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, self._decode, tokens, skip_special_tokens)

    def _decode(self, tokens: Sequence[int], skip_special_tokens: bool) -> str:
        [text] = self._tokenizer.decode_batch([tokens], skip_special_tokens=skip_special_tokens)
        return str(text)

    def detokenizer(self, prompt: Sequence[int]) -> Detokenizer:
        """Makes the detokenizer of one sample of the output that follows `prompt`."""
        return self._detokenizers.make(prompt)

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
