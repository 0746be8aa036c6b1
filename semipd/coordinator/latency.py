"""Chooses the latency model that policies begin with, once, at start."""

from __future__ import annotations

from pathlib import Path

from semipd.coordinator.devices import ChosenDevice
from semipd.core.config import ServerConfig
from semipd.core.errors import ConfigError, InputError
from semipd.core.latency import NOMINAL
from semipd.core.model import ModelConfig
from semipd.models import BUNDLED
from semipd.profiles.find import FoundModel, find_model
from semipd.profiles.hardware import hardware_of_cpu, hardware_of_gpu
from semipd.profiles.shape import read_config


def choose_latency_model(config: ServerConfig, device: ChosenDevice, cpus: int) -> FoundModel:
    """Returns the latency model for this model on this device, of which a CPU has so many cores for the server.

    Raises ConfigError where the profile of `--profile` can't be used.
    """
    try:
        _, model = read_config(Path(config.model) if config.model else BUNDLED)
    except InputError as error:  # the resident says so in its own words, and the server does not start
        return FoundModel(NOMINAL, "none", f"the model can't be read: {error}", measured=False)
    dtype = _dtype(config, device, model)
    hardware = hardware_of_gpu(device.gpu, dtype) if device.gpu is not None else hardware_of_cpu(cpus)
    try:
        return find_model(config.profile, hardware, model, dtype)
    except InputError as error:
        raise ConfigError(f"--profile: {error}") from error


def _dtype(config: ServerConfig, device: ChosenDevice, model: ModelConfig) -> str:
    """Returns the number format of weights and KV that the resident will choose."""
    if config.dtype != "auto":
        return config.dtype
    return model.dtype if device.kind == "cuda" else "float32"
