"""Power and utilisation of this machine's NVIDIA GPUs through NVML, where pynvml and a driver are there."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self


@dataclass(frozen=True, slots=True)
class GpuReading:
    """Power in watts, memory in bytes, utilisation from 0 to 1: the share of the last moments in which any kernel ran.

    A power that the card doesn't tell is None.
    """

    index: int
    name: str
    power_w: float | None
    power_limit_w: float | None
    utilisation: float | None
    memory_used: int
    memory_total: int


class GpuMeter:
    """Reads all GPUs; on a machine without any, or without pynvml, `read` answers an empty tuple."""

    def __init__(self) -> None:
        self._nvml: Any = None

    def __enter__(self) -> Self:
        try:
            nvml = importlib.import_module("pynvml")
        except ImportError:
            return self
        try:
            nvml.nvmlInit()
        except nvml.NVMLError:  # no driver, or a driver of another version
            return self
        self._nvml = nvml
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._nvml is not None:
            self._nvml.nvmlShutdown()
            self._nvml = None

    def read(self) -> tuple[GpuReading, ...]:
        """A card that falls off the bus is left out until it answers again."""
        if self._nvml is None:
            return ()
        readings = []
        for index in range(self._nvml.nvmlDeviceGetCount()):
            try:
                readings.append(self._reading(index))
            except self._nvml.NVMLError:
                continue
        return tuple(readings)

    def _reading(self, index: int) -> GpuReading:
        nvml = self._nvml
        card = nvml.nvmlDeviceGetHandleByIndex(index)
        name = nvml.nvmlDeviceGetName(card)
        memory = nvml.nvmlDeviceGetMemoryInfo(card)
        limit = self._told(nvml.nvmlDeviceGetEnforcedPowerLimit, card)
        power = self._told(nvml.nvmlDeviceGetPowerUsage, card)
        rates = self._told(nvml.nvmlDeviceGetUtilizationRates, card)
        return GpuReading(
            index=index,
            name=name.decode() if isinstance(name, bytes) else str(name),
            power_w=None if power is None else power / 1000,
            power_limit_w=None if limit is None else limit / 1000,
            utilisation=None if rates is None else rates.gpu / 100,
            memory_used=int(memory.used),
            memory_total=int(memory.total),
        )

    def _told(self, ask: Any, card: Any) -> Any:
        """Some cards and virtual GPUs don't tell everything."""
        try:
            return ask(card)
        except self._nvml.NVMLError_NotSupported:
            return None
