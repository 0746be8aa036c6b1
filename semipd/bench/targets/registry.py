"""Opens the target that speaks the protocol of an address."""

from __future__ import annotations

from semipd.bench.settings import RunSettings
from semipd.bench.targets.base import Target, parse_target
from semipd.bench.targets.grpc_target import GrpcTarget
from semipd.bench.targets.openai_target import OpenAiTarget


def open_target(settings: RunSettings) -> Target:
    """Returns the target, to be entered with `async with`. Raises InputError where the settings don't suit it."""
    address = parse_target(settings.target)
    kind = GrpcTarget if address.protocol == "grpc" else OpenAiTarget
    return kind(settings, address)
