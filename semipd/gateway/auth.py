"""API keys and TLS."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable, Iterable
from pathlib import Path

import grpc

from semipd.core.config import ServerConfig
from semipd.core.errors import ConfigError, NotAuthenticated, Reason
from semipd.gateway.interceptor import Continuation, Handler, refusing_handler

GENERATIONS = "/semipd.v1.GenerationService/Generate"
"""The beginning of the methods whose refusal is counted."""


def read_api_keys(path: str) -> tuple[str, ...]:
    """Reads a file with one key a line. Empty lines and lines that begin with # don't count. Raises ConfigError."""
    try:
        lines = [line.strip() for line in Path(path).read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--api-keys-file: {path} cannot be read ({type(error).__name__})") from error
    keys = tuple(line for line in lines if line and not line.startswith("#"))
    if not keys:
        raise ConfigError(f"--api-keys-file: {path} holds no key")
    return keys


class ApiKeyInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[misc, unused-ignore]
    """Refuses every RPC, of whatever service, that doesn't bring `authorization: Bearer KEY` with one of the keys."""

    def __init__(self, keys: Iterable[str], refused: Callable[[Reason], None]) -> None:
        self._digests = [_digest(key.encode()) for key in keys]
        self._refused = refused

    async def intercept_service(
        self, continuation: Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> Handler | None:
        values = [value for name, value in handler_call_details.invocation_metadata or () if name == "authorization"]
        if self._knows(values):
            return await continuation(handler_call_details)
        if handler_call_details.method.startswith(GENERATIONS):
            self._refused(Reason.UNAUTHENTICATED)
        why = "the API key is not known" if values else "an API key is needed: `authorization: Bearer KEY`"
        return refusing_handler(NotAuthenticated(why))

    def _knows(self, values: list[str | bytes]) -> bool:
        if len(values) != 1:
            return False
        value = values[0] if isinstance(values[0], bytes) else values[0].encode()
        scheme, _, key = value.partition(b" ")
        digest = _digest(key.strip())
        # Digests of one length, all of them compared: the time tells nothing about the keys.
        matches = [hmac.compare_digest(digest, known) for known in self._digests]
        return scheme.lower() == b"bearer" and any(matches)


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def tls_credentials(config: ServerConfig) -> grpc.ServerCredentials | None:
    """Reads certificate and key. None: the server speaks plain text. Raises ConfigError."""
    if not config.tls_certificate:
        return None
    try:
        key, certificate = Path(config.tls_key).read_bytes(), Path(config.tls_certificate).read_bytes()
    except OSError as error:
        raise ConfigError(f"--tls-certificate and --tls-key: {error.filename} cannot be read") from error
    return grpc.ssl_server_credentials([(key, certificate)])
