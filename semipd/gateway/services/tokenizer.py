"""TokenizerService: the server's tokenizer by itself, without the coordinator."""

from __future__ import annotations

from semipd.gateway.interceptor import Context
from semipd.gateway.prompts import PromptEncoder
from semipd.gateway.served_model import ServedModel
from semipd.gateway.validate import Violations, check_input, check_messages, check_model, refuse_unknown_fields
from semipd.v1 import tokenizer_pb2 as pb
from semipd.v1 import tokenizer_pb2_grpc

MAX_TOKENS = 2**20
"""Most tokens in one call of Detokenize."""


class TokenizerService(tokenizer_pb2_grpc.TokenizerServiceServicer):  # type: ignore[misc, unused-ignore]
    def __init__(self, model: ServedModel, prompts: PromptEncoder) -> None:
        self._model = model
        self._prompts = prompts

    async def Tokenize(self, request: pb.TokenizeRequest, _context: Context) -> pb.TokenizeResponse:
        check_model(request, self._model)
        refuse_unknown_fields(request)
        kind = request.WhichOneof("input")
        check_input(kind, self._prompts.features)
        wrong = Violations()
        if kind is None:
            wrong.add("input", "one of text and chat must be set")
        if kind == "chat":
            check_messages(request.chat, wrong)
            if request.HasField("add_special_tokens"):
                wrong.add("add_special_tokens", "goes with text: a chat template writes its special tokens itself")
        wrong.raise_if_any()
        if kind == "chat":
            return pb.TokenizeResponse(token_ids=await self._prompts.encode_chat(request.chat))
        special = request.add_special_tokens or not request.HasField("add_special_tokens")
        return pb.TokenizeResponse(token_ids=await self._prompts.encode_text(request.text, add_special_tokens=special))

    async def Detokenize(self, request: pb.DetokenizeRequest, _context: Context) -> pb.DetokenizeResponse:
        check_model(request, self._model)
        refuse_unknown_fields(request)
        tokenizer = self._prompts.required_tokenizer()
        wrong = Violations()
        if len(request.token_ids) > MAX_TOKENS:
            wrong.add("token_ids", f"must have at most {MAX_TOKENS} entries; got {len(request.token_ids)}")
        else:
            wrong.token_ids("token_ids", request.token_ids, self._model.vocab_size)
        wrong.raise_if_any()
        skip = request.skip_special_tokens or not request.HasField("skip_special_tokens")
        return pb.DetokenizeResponse(text=await tokenizer.decode(list(request.token_ids), skip_special_tokens=skip))
