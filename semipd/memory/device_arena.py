"""GPU memory that several processes map: plain `cudaMalloc` blocks, passed on as CUDA IPC handles.

Everything is on device 0 of the process. CuPy is imported when the first arena is made, so that a process without a use
for a GPU never loads it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from semipd.core.errors import StartError

HANDLE_BYTES = 64
_BLOCK = 2 << 20
"""Bytes of a block of `cudaMalloc`. Smaller pieces are cut out of such blocks, and a handle opens the whole block to
its receiver."""


class DeviceArena:
    """A mapped piece of GPU memory. `handle` may be sent to other processes, which map the same memory with it.

    CUDA IPC knows no read-only mapping: every process that opens an arena can write to all of it, and nobody could find
    out who made a stray write. So what may be written is a matter of discipline here, not of protection.

    Views of it (see `tensors`) must not be used after `close`.
    """

    def __init__(self, name: str, address: int, size: int, handle: bytes, release: Callable[[int], None]) -> None:
        """`release` is called once, with `address`, a device pointer."""
        self.name = name
        self.address = address
        self.bytes = size
        self.handle = handle
        self._release: Callable[[int], None] | None = release

    @classmethod
    def create(cls, name: str, size: int) -> DeviceArena:
        """Returns `size` bytes of zeroed memory. Raises StartError where there is not enough."""
        runtime = cuda_runtime()
        whole = -(-size // _BLOCK) * _BLOCK
        try:
            address = runtime.malloc(whole)
        except runtime.CUDARuntimeError as error:
            raise StartError(_not_to_be_had(runtime, name, size, error)) from error
        try:
            runtime.memset(address, 0, whole)  # stale bits may be NaN, which no attention mask removes
            runtime.deviceSynchronize()
            handle = runtime.ipcGetMemHandle(address)
        except runtime.CUDARuntimeError as error:
            with contextlib.suppress(runtime.CUDARuntimeError):
                runtime.free(address)
            raise StartError(f"GPU memory for {name!r} can't be shared with other processes: {error}") from error
        return cls(name, address, size, handle, runtime.free)

    @classmethod
    def open(cls, name: str, handle: bytes, size: int) -> DeviceArena:
        """Maps what another process has created. CUDA refuses to do so in that process itself.

        Raises StartError, also where the process that created the memory has ended.
        """
        if len(handle) != HANDLE_BYTES:
            raise StartError(f"arena {name!r}: a CUDA IPC handle has {HANDLE_BYTES} bytes, and {len(handle)} came")
        runtime = cuda_runtime()
        try:
            address = runtime.ipcOpenMemHandle(handle, runtime.cudaIpcMemLazyEnablePeerAccess)
        except runtime.CUDARuntimeError as error:
            raise StartError(
                f"{size / 1e9:.3f} GB of GPU memory for {name!r} can't be mapped; has the process that holds them "
                f"ended? ({error})"
            ) from error
        return cls(name, address, size, handle, runtime.ipcCloseMemHandle)

    def close(self) -> None:
        """Frees what was created, unmaps what was opened. A second call does nothing."""
        release, self._release = self._release, None
        if release is not None:
            with contextlib.suppress(RuntimeError):  # a lost context has nothing left to give back
                release(self.address)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def cuda_runtime() -> Any:
    """Returns CuPy's CUDA runtime, with device 0 chosen in this thread. Raises StartError where it can't be used."""
    try:
        from cupy.cuda import runtime  # noqa: PLC0415 - not before a GPU is asked for
    except ImportError as error:
        raise StartError(f"memory on a GPU needs CuPy (pip install 'semipd[cuda]'): {error}") from error
    try:
        runtime.setDevice(0)
    except runtime.CUDARuntimeError as error:
        raise StartError(f"this process can't use a GPU: {error}") from error
    return runtime


def _not_to_be_had(runtime: Any, name: str, size: int, error: Exception) -> str:
    message = f"{size / 1e9:.3f} GB of GPU memory for {name!r} are not to be had ({error})"
    with contextlib.suppress(runtime.CUDARuntimeError):
        free, total = runtime.memGetInfo()
        message += f"; {free / 1e9:.3f} of {total / 1e9:.3f} GB are free"
    return message
