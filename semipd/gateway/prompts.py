"""Turns what a client sends (text, chat or token ids) into token ids."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from semipd.core.errors import Unsupported
from semipd.gateway.chat import ChatRenderer
from semipd.gateway.detokenize import Detokenizer
from semipd.gateway.tokenizer import ServedTokenizer
from semipd.gateway.validate import CheckpointFeatures
from semipd.v1 import generation_pb2 as pb


@dataclass(frozen=True, slots=True)
class PromptEncoder:
    """Encodes prompts with what the checkpoint has: a tokenizer, a chat template, or neither (None)."""

    tokenizer: ServedTokenizer | None
    chat: ChatRenderer | None

    @property
    def features(self) -> CheckpointFeatures:
        return CheckpointFeatures(
            text=self.tokenizer is not None, chat=self.tokenizer is not None and self.chat is not None
        )

    async def encode_generation(self, generation: pb.Generation) -> tuple[str, Sequence[int]]:
        """Returns the name of the field that holds the prompt, and the prompt's tokens."""
        match generation.WhichOneof("input"):
            case "text":
                return "text", await self.encode_text(generation.text)
            case "chat":
                return "chat.messages", await self.encode_chat(generation.chat)
            case _:
                return "token_ids.ids", generation.token_ids.ids

    async def encode_text(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        return await self.required_tokenizer().encode(text, add_special_tokens=add_special_tokens)

    async def encode_chat(self, chat: pb.Chat) -> list[int]:
        """Encodes messages. The template writes the special tokens itself. Raises Unsupported without a template."""
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
