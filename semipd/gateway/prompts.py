"""What a client sends, text or chat or token ids, as token ids."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from semipd.core.errors import Unsupported
from semipd.gateway.chat import ChatRenderer
from semipd.gateway.detokenize import Detokenizer
from semipd.gateway.tokenizer import ServedTokenizer
from semipd.gateway.validate import Features
from semipd.v1 import generation_pb2 as pb


@dataclass(frozen=True, slots=True)
class Prompts:
    """None: the checkpoint doesn't have it."""

    tokenizer: ServedTokenizer | None
    chat: ChatRenderer | None

    @property
    def features(self) -> Features:
        return Features(text=self.tokenizer is not None, chat=self.tokenizer is not None and self.chat is not None)

    async def of_generation(self, generation: pb.Generation) -> tuple[str, Sequence[int]]:
        """The field that holds the prompt, and its tokens."""
        match generation.WhichOneof("input"):
            case "text":
                return "text", await self.of_text(generation.text)
            case "chat":
                return "chat.messages", await self.of_chat(generation.chat)
            case _:
                return "token_ids.ids", generation.token_ids.ids

    async def of_text(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        return await self.required_tokenizer().encode(text, add_special_tokens=add_special_tokens)

    async def of_chat(self, chat: pb.Chat) -> list[int]:
        """The template writes the special tokens itself."""
        if self.chat is None:
            raise Unsupported("the checkpoint has no chat template")
        text = await self.chat.render([{"role": m.role, "content": m.content} for m in chat.messages])
        return await self.required_tokenizer().encode(text, add_special_tokens=False)

    def required_tokenizer(self) -> ServedTokenizer:
        if self.tokenizer is None:
            raise Unsupported("the checkpoint has no tokenizer")
        return self.tokenizer

    def detokenizer(self, prompt: Sequence[int]) -> Detokenizer | None:
        return self.tokenizer.detokenizer(prompt) if self.tokenizer is not None else None
