"""Which target speaks which protocol."""

from __future__ import annotations

from semipd.bench.grpc_target import GrpcTarget
from semipd.bench.openai_target import OpenAiTarget
from semipd.bench.settings import RunSettings
from semipd.bench.target import Target, parse_target


def open_target(settings: RunSettings) -> Target:
    """To be entered with `async with`. Raises InputError where the settings don't suit the target."""
    address = parse_target(settings.target)
    kind = GrpcTarget if address.protocol == "grpc" else OpenAiTarget
    return kind(settings, address)
