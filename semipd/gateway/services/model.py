"""ModelService: says what is served, and within which limits."""

from __future__ import annotations

from semipd.gateway import validate
from semipd.gateway.interceptor import Context
from semipd.gateway.served_model import ServedModel
from semipd.gateway.validate import CheckpointFeatures, check_model
from semipd.v1 import model_pb2 as pb
from semipd.v1 import model_pb2_grpc


class ModelService(model_pb2_grpc.ModelServiceServicer):  # type: ignore[misc, unused-ignore]
    def __init__(self, model: ServedModel, features: CheckpointFeatures) -> None:
        self._model = model
        self._described = pb.Model(
            name=model.name,
            architecture=model.architecture,
            dtype=model.dtype,
            parameters=model.parameters,
            vocab_size=model.vocab_size,
            max_context=model.max_context,
            eos_token_ids=model.eos_token_ids,
            capabilities=pb.Capabilities(text=features.text, chat=features.chat, logprobs=True),
            limits=pb.Limits(
                max_samples=validate.MAX_SAMPLES,
                max_stop_strings=validate.MAX_STOP_STRINGS,
                max_stop_token_ids=validate.MAX_STOP_TOKEN_IDS,
                max_top_logprobs=validate.MAX_TOP_LOGPROBS,
                max_logit_bias=validate.MAX_LOGIT_BIAS,
            ),
        )

    async def ListModels(self, _request: pb.ListModelsRequest, _context: Context) -> pb.ListModelsResponse:
        return pb.ListModelsResponse(models=[self._described])

    async def GetModel(self, request: pb.GetModelRequest, _context: Context) -> pb.GetModelResponse:
        check_model(request, self._model)
        return pb.GetModelResponse(model=self._described)
