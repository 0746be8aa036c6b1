"""The memory in which the resident keeps weights and pool: the machine's, or a GPU's."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

import torch

from semipd.core.errors import StartError
from semipd.core.model import ModelConfig
from semipd.engine.staging import Staging
from semipd.memory.arenas import SharedArena, available_bytes
from semipd.memory.device_arena import DeviceArena, cuda_runtime
from semipd.memory.manifest import Arena


class ResidentMemory(Protocol):
    """Memory of one device, for the arenas of the resident."""

    def arena(self, name: str, size: int) -> Arena:
        """Returns zeroed memory, which the caller closes. Raises StartError where there is not enough."""

    def dtype(self, model: ModelConfig) -> str:
        """Returns the type that `--dtype auto` stands for here."""

    def available_bytes(self) -> int:
        """Returns the bytes that further arenas could have now."""

    def staging(self) -> AbstractContextManager[Staging | None]:
        """Returns the buffers through which files are read into this memory; None where none are needed."""

    def finish_loading(self) -> None:
        """Waits for what was computed there, and frees what it took besides arenas."""

    def report(self) -> dict[str, object]:
        """Returns facts for the people who watch the start."""


def memory_of(device: str) -> ResidentMemory:
    """Returns the memory of `device` (cpu or cuda). Raises StartError where this process can't use it."""
    return GpuMemory() if device == "cuda" else CpuMemory()


class CpuMemory:
    """Shared memory of the machine."""

    def arena(self, name: str, size: int) -> SharedArena:
        return SharedArena.create(name, size)

    def dtype(self, model: ModelConfig) -> str:
        """Returns float32: a CPU computes faster in no other type."""
        return "float32"

    def available_bytes(self) -> int:
        return available_bytes()

    def staging(self) -> AbstractContextManager[None]:
        return nullcontext()

    def finish_loading(self) -> None:
        pass

    def report(self) -> dict[str, object]:
        return {"device": "cpu"}


class GpuMemory:
    """Memory of device 0 of this process."""

    def __init__(self) -> None:
        """Raises StartError where this process has no GPU, or lacks what it takes to use one."""
        cuda_runtime()
        if not torch.cuda.is_available():
            raise StartError(f"torch {torch.__version__} can't use the GPU; is it a CUDA build?")
        self._device = torch.device("cuda", 0)

    def arena(self, name: str, size: int) -> DeviceArena:
        return DeviceArena.create(name, size)

    def dtype(self, model: ModelConfig) -> str:
        return model.dtype

    def available_bytes(self) -> int:
        free, _ = torch.cuda.mem_get_info(self._device)
        return free

    def staging(self) -> AbstractContextManager[Staging]:
        return Staging(self._device)

    def finish_loading(self) -> None:
        torch.cuda.synchronize(self._device)
        torch.cuda.empty_cache()

    def report(self) -> dict[str, object]:
        free, total = torch.cuda.mem_get_info(self._device)
        properties = torch.cuda.get_device_properties(self._device)
        return {
            "device": properties.name,
            "sms": properties.multi_processor_count,
            "device_used_bytes": total - free,
            "device_total_bytes": total,
        }
