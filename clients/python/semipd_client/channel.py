"""The way to a server: address, TLS, channel options, and the methods that are called there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import grpc
from google.protobuf.message import Message as ProtoMessage

from semipd_client._proto.semipd.client.v1 import health_pb2
from semipd_client._proto.semipd.v1 import admin_pb2, generation_pb2, model_pb2, tokenizer_pb2

MAX_MESSAGE_BYTES = 64 * 2**20

RETRY_INTERVAL_S = 0.1
"""Seconds between two tries of `wait_ready`, where a server answers and breaks off."""

Q = TypeVar("Q", bound=ProtoMessage)
A = TypeVar("A", bound=ProtoMessage)


@dataclass(frozen=True, slots=True)
class TlsOptions:
    """The files by which to trust the server and, if it asks for that, to be trusted. They are PEM."""

    ca_file: str | Path | None = None
    """Certificates of the authority that signed the server's; None: the authorities that gRPC knows."""
    certificate_file: str | Path | None = None
    key_file: str | Path | None = None
    server_name: str | None = None
    """The name in the server's certificate, if it isn't the one in the address."""

    def credentials(self) -> grpc.ChannelCredentials:
        """Reads the files; raises OSError."""

        def read(path: str | Path | None) -> bytes | None:
            return None if path is None else Path(path).read_bytes()

        return grpc.ssl_channel_credentials(read(self.ca_file), read(self.key_file), read(self.certificate_file))


def channel_options(target: str, tls: TlsOptions | None) -> list[tuple[str, Any]]:
    options: list[tuple[str, Any]] = [
        ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
        ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
        # A server that vanished without a word is noticed; a server of ours allows a ping every 10 s.
        ("grpc.keepalive_time_ms", 20_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        # A server that is starting is found within a second of being there, instead of gRPC's two minutes.
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 1_000),
        # Channels of one process would otherwise share a connection, and with it the backoff of a failed one.
        ("grpc.use_local_subchannel_pool", 1),
    ]
    if target.startswith(("127.", "localhost", "[::1]", "unix:")):
        # A proxy can't reach this machine's loopback, whatever http_proxy says.
        options.append(("grpc.enable_http_proxy", 0))
    if tls is not None and tls.server_name is not None:
        options.append(("grpc.ssl_target_name_override", tls.server_name))
    return options


@dataclass(frozen=True, slots=True)
class Method(Generic[Q, A]):
    """A method of the API: its path, and the messages that it takes and gives."""

    path: str
    question: type[Q]
    answer: type[A]

    @property
    def encode(self) -> Callable[[Q], bytes]:
        return self.question.SerializeToString

    @property
    def decode(self) -> Callable[[bytes], A]:
        return self.answer.FromString


_GENERATION = "/semipd.v1.GenerationService/"
_MODEL = "/semipd.v1.ModelService/"
_TOKENIZER = "/semipd.v1.TokenizerService/"
_ADMIN = "/semipd.v1.AdminService/"
_HEALTH = "/grpc.health.v1.Health/"

GENERATE = Method(_GENERATION + "Generate", generation_pb2.GenerateRequest, generation_pb2.GenerateResponse)
GENERATE_STREAM = Method(
    _GENERATION + "GenerateStream", generation_pb2.GenerateStreamRequest, generation_pb2.GenerateStreamResponse
)
ABORT = Method(_GENERATION + "Abort", generation_pb2.AbortRequest, generation_pb2.AbortResponse)
LIST_MODELS = Method(_MODEL + "ListModels", model_pb2.ListModelsRequest, model_pb2.ListModelsResponse)
GET_MODEL = Method(_MODEL + "GetModel", model_pb2.GetModelRequest, model_pb2.GetModelResponse)
TOKENIZE = Method(_TOKENIZER + "Tokenize", tokenizer_pb2.TokenizeRequest, tokenizer_pb2.TokenizeResponse)
DETOKENIZE = Method(_TOKENIZER + "Detokenize", tokenizer_pb2.DetokenizeRequest, tokenizer_pb2.DetokenizeResponse)
GET_SERVER_INFO = Method(_ADMIN + "GetServerInfo", admin_pb2.GetServerInfoRequest, admin_pb2.GetServerInfoResponse)
GET_LOAD = Method(_ADMIN + "GetLoad", admin_pb2.GetLoadRequest, admin_pb2.GetLoadResponse)
WATCH_LOAD = Method(_ADMIN + "WatchLoad", admin_pb2.WatchLoadRequest, admin_pb2.WatchLoadResponse)
DRAIN = Method(_ADMIN + "Drain", admin_pb2.DrainRequest, admin_pb2.DrainResponse)
LIST_POLICIES = Method(_ADMIN + "ListPolicies", admin_pb2.ListPoliciesRequest, admin_pb2.ListPoliciesResponse)
SET_POLICY = Method(_ADMIN + "SetPolicy", admin_pb2.SetPolicyRequest, admin_pb2.SetPolicyResponse)
SET_PARTITION = Method(_ADMIN + "SetPartition", admin_pb2.SetPartitionRequest, admin_pb2.SetPartitionResponse)
HEALTH_CHECK = Method(_HEALTH + "Check", health_pb2.HealthCheck, health_pb2.HealthStatus)
HEALTH_WATCH = Method(_HEALTH + "Watch", health_pb2.HealthCheck, health_pb2.HealthStatus)


def metadata_for(api_key: str | None) -> tuple[tuple[str, str], ...]:
    return () if api_key is None else (("authorization", f"Bearer {api_key}"),)
