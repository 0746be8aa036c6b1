"""Finds the latency model that policies begin with: measured if it can be, else computed from the device's own data.

In this order: the profile that was asked for; one that was recorded on this machine (`semipd.profiles.cache`); one that
ships; a roofline. A profile is taken if it is of this GPU and of a model of this shape.
"""

from __future__ import annotations

from dataclasses import dataclass

from semipd.core.errors import InputError
from semipd.core.latency import LatencyModel
from semipd.core.model import ModelConfig
from semipd.profiles.cache import kept
from semipd.profiles.hardware import Hardware
from semipd.profiles.latency import latency_model
from semipd.profiles.profile import ModelShape, Profile, load_profile, shipped
from semipd.profiles.roofline import roofline
from semipd.profiles.shape import ITEM_BYTES, model_shape

ALIKE = 0.02
"""Two models whose weights differ in size by at most this part have one shape: a vocabulary may have been extended."""


@dataclass(frozen=True, slots=True)
class FoundModel:
    """A latency model, and where it comes from."""

    latency: LatencyModel
    source: str
    """Its origin, for people: a profile, or a roofline."""
    why: str
    """The reason for this one, for people."""
    measured: bool
    """True: it is fitted to a profile."""
    warnings: tuple[str, ...] = ()
    """Files that could not be used."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A profile that may be of this GPU and model."""

    profile: Profile
    source: str


def find_model(asked: str, hardware: Hardware, model: ModelConfig, dtype: str) -> FoundModel:
    """Returns the latency model for a model with this number format on this device.

    `asked`: the profile that was asked for, a file or the name of one that ships; empty: none.

    Raises InputError where the profile that was asked for can't be used. Any other file that can't be read is told of
    in `warnings`.
    """
    shape = model_shape("", model, dtype)
    if asked:
        profile = load_profile(asked)
        other = difference(profile, hardware, shape)
        told = (f"{asked}: {other}",) if other else ()
        return FoundModel(latency_model(profile), f"profile {asked}", "asked for", True, told)
    candidates, warnings = candidates_for(hardware)
    for each in candidates:
        if not difference(each.profile, hardware, shape):
            return FoundModel(latency_model(each.profile), each.source, "this GPU and model shape", True, warnings)
    computed = roofline(hardware, model, ITEM_BYTES[dtype])
    return FoundModel(computed, str(hardware), _why(hardware, candidates), False, warnings)


def _why(hardware: Hardware, candidates: tuple[Candidate, ...]) -> str:
    if not hardware.on_gpu:
        return "profiles are of GPUs"
    missing = "no profile of this model shape on this GPU" if candidates else "no profile of this GPU"
    return f"{missing}; `semipd profile` records one"


def candidates_for(hardware: Hardware) -> tuple[tuple[Candidate, ...], tuple[str, ...]]:
    """Returns the profiles of this GPU, those of this machine first, and what is wrong with files of the cache."""
    if not hardware.on_gpu:
        return (), ()
    found, warnings = [], []
    for file, profile in kept():
        if isinstance(profile, InputError):
            warnings.append(f"{profile}; the file is ignored, remove it or record it anew")
        else:
            found.append(Candidate(profile, f"profile {file}, recorded on this machine"))
    found += [Candidate(load_profile(name), f"profile {name}, which ships") for name in shipped()]
    return tuple(each for each in found if not _other_gpu(each.profile, hardware)), tuple(warnings)


def difference(profile: Profile, hardware: Hardware, shape: ModelShape) -> str:
    """Returns how a profile differs from this device and model shape; empty: it does not."""
    return _other_gpu(profile, hardware) or _other_shape(profile.model, shape)


def _other_gpu(profile: Profile, hardware: Hardware) -> str:
    if not hardware.on_gpu:
        return f"recorded on {profile.gpu.name}, and this is no GPU"
    if profile.gpu.name != hardware.name:
        return f"recorded on {profile.gpu.name}, and this is {hardware.name}"
    if hardware.sms_known and profile.gpu.sms != hardware.sms:
        return f"recorded on {profile.gpu.sms} SMs, and this GPU has {hardware.sms}"
    return ""


def _other_shape(recorded: ModelShape, wanted: ModelShape) -> str:
    if recorded.dtype != wanted.dtype:
        return f"recorded with {recorded.dtype}, and this model has {wanted.dtype}"
    if recorded.kv_token_bytes != wanted.kv_token_bytes:
        has, wants = recorded.kv_token_bytes, wanted.kv_token_bytes
        return f"recorded with {has} bytes of KV a token, and this model has {wants}"
    if abs(recorded.weight_bytes / wanted.weight_bytes - 1) > ALIKE:
        has_gb, wants_gb = recorded.weight_bytes / 1e9, wanted.weight_bytes / 1e9
        return f"recorded with {has_gb:.1f} GB of weights, and this model has {wants_gb:.1f} GB"
    return ""
