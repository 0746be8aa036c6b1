"""Latency profiles that policies can begin with on this machine."""

from __future__ import annotations

from dataclasses import dataclass

from semipd.cli.checkup.finding import Finding, State
from semipd.coordinator.devices import ChosenDevice
from semipd.profiles.find import candidates_for
from semipd.profiles.hardware import hardware_of_gpu

RECORD = "record one: semipd profile --model DIR"


@dataclass(frozen=True, slots=True)
class Profiles:
    """The profiles of this machine's GPU."""

    found: tuple[str, ...]
    """Each with its source and the model that it is of; those that are looked at first come first."""
    problems: tuple[str, ...]
    """Files of the cache that can't be used."""


NO_PROFILES = Profiles((), ())


def survey_profiles(device: ChosenDevice) -> Profiles:
    """Looks for profiles of the GPU that a server would compute on."""
    if device.gpu is None:
        return NO_PROFILES
    candidates, problems = candidates_for(hardware_of_gpu(device.gpu, "bfloat16"))
    found = (f"{c.source} ({c.profile.model.name}, {c.profile.model.dtype})" for c in candidates)
    return Profiles(tuple(found), problems)


def check_profiles(seen: Profiles, device: ChosenDevice) -> Finding:
    name = "latency profile"
    if device.gpu is None:
        return Finding(name, State.NEEDLESS, "none", "policies begin with an estimate from the CPU's cores and clock")
    if seen.problems:
        return Finding(name, State.LESS, "; ".join(seen.problems), "policies begin without it")
    if not seen.found:
        return Finding(name, State.LESS, "none of this GPU", f"policies begin with an estimate from its data; {RECORD}")
    follows = f"policies begin with it for models of this shape, with an estimate for others; {RECORD}"
    return Finding(name, State.GOOD, "; ".join(seen.found), follows)
