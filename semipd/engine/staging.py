"""Moves bytes between files and a device through a few buffers: they are read, copied and worked on at the same time.

On a GPU the buffers are page-locked, so that copies are DMA and run beside everything else. On a CPU the same code runs
without copies: each buffer is its own device.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from queue import SimpleQueue
from types import TracebackType
from typing import Self

import torch

from semipd.core.errors import StartError

BUFFER_BYTES = 32 << 20
"""Bytes of a buffer. A DMA of this size is as fast as any, and reads from disk are long runs."""

_PORTABLE = 1
"""CUDA's flag cudaHostRegisterPortable: memory is page-locked for every context."""


@dataclass(frozen=True, slots=True)
class FileSpan:
    """A range of bytes of an open file, which fits a buffer."""

    fd: int
    offset: int
    bytes: int


class ReadFailed(Exception):
    """A span could not be read. `index` is its place among those asked for."""

    def __init__(self, index: int, why: str) -> None:
        super().__init__(why)
        self.index = index


class Staging:
    """The buffers. `with` page-locks them, and gives them back at its end.

    `stream` and `fetch` must not run at the same time.
    """

    def __init__(self, device: torch.device, *, buffers: int = 0, buffer_bytes: int = BUFFER_BYTES) -> None:
        """`buffers`: their number; 0: one for each core, but 4 to 16.

        A thread of its own fills or hashes each buffer. Each takes `buffer_bytes` of host memory, and on a GPU as much
        of the device's.
        """
        self.device = device
        self.buffer_bytes = buffer_bytes
        self._buffers = buffers or min(16, max(4, os.cpu_count() or 4))
        self._slots: list[_Buffer] = []
        self._free: SimpleQueue[_Buffer] = SimpleQueue()
        self._streams: _CopyStreams | None = None
        self._opened = ExitStack()

    def __enter__(self) -> Self:
        """Allocates the buffers. Raises StartError where memory can't be page-locked."""
        with ExitStack() as opened:
            if self.device.type == "cuda":
                self._streams = _CopyStreams(self.device)
            for _ in range(self._buffers):
                slot = _GpuBuffer(self.buffer_bytes, self._streams) if self._streams else _Buffer(self.buffer_bytes)
                opened.callback(slot.close)
                self._slots.append(slot)
                self._free.put(slot)
            self._opened = opened.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._opened.close()
        self._slots.clear()
        self._free = SimpleQueue()
        self._streams = None

    def stream(self, spans: Sequence[FileSpan], deliver: Callable[[int, torch.Tensor], None]) -> None:
        """Reads every span, several at once, and hands `deliver` its index and its bytes, in order.

        The bytes are a tensor [bytes] of uint8 on the device, which `deliver` must not keep. On a GPU its work is
        queued in a stream of its own, behind what the caller has queued, and is done when `stream` returns. Raises
        ReadFailed.
        """
        if self._streams:
            self._streams.working.wait_stream(torch.cuda.current_stream())
        rest = iter(range(len(spans)))
        reading: deque[tuple[int, _Buffer, Future[None]]] = deque()
        with ThreadPoolExecutor(len(self._slots)) as readers:

            def read_next(slot: _Buffer) -> None:
                index = next(rest, None)
                if index is not None:
                    reading.append((index, slot, readers.submit(slot.read, spans[index])))

            for slot in self._slots:
                read_next(slot)
            while reading:
                index, slot, read = reading.popleft()
                try:
                    read.result()
                except (OSError, EOFError) as error:
                    raise ReadFailed(index, str(error)) from error
                slot.deliver(index, spans[index].bytes, deliver)
                read_next(slot)
        if self._streams:
            self._streams.working.synchronize()

    def fetch(self, tensor: torch.Tensor) -> Iterator[memoryview]:
        """Yields the bytes of a contiguous tensor on the host, in pieces. Each is valid until the next is asked for.

        Several threads may fetch at once. When every buffer is in use, they wait for one.
        """
        flat = tensor.view(-1).view(torch.uint8)
        slot = self._free.get()
        try:
            for start in range(0, len(flat), self.buffer_bytes):
                yield slot.fetch(flat[start : start + self.buffer_bytes])
        finally:
            self._free.put(slot)


class _Buffer:
    """A buffer of host memory that is its own device."""

    def __init__(self, size: int) -> None:
        self.host = torch.empty(size, dtype=torch.uint8)

    def read(self, span: FileSpan) -> None:
        """Fills the buffer when its contents are no longer needed. Raises OSError; EOFError where the file is too
        short."""
        self.wait()
        view = self.host.numpy().data[: span.bytes]
        done = 0
        while done < span.bytes:
            count = os.preadv(span.fd, [view[done:]], span.offset + done)
            if count == 0:
                raise EOFError("the file ends before it")
            done += count

    def wait(self) -> None:
        """Waits until the bytes that were delivered last have been worked on."""

    def deliver(self, index: int, size: int, work: Callable[[int, torch.Tensor], None]) -> None:
        work(index, self.host[:size])

    def fetch(self, part: torch.Tensor) -> memoryview:
        return part.numpy().data

    def close(self) -> None:
        pass


class _CopyStreams:
    """Two streams of a device: copies go on while earlier pieces are worked on."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.copying = torch.cuda.Stream(device)
        self.working = torch.cuda.Stream(device)


class _GpuBuffer(_Buffer):
    """A page-locked buffer and its counterpart on the GPU."""

    def __init__(self, size: int, streams: _CopyStreams) -> None:
        super().__init__(size)
        self._streams = streams
        self._there = torch.empty(size, dtype=torch.uint8, device=streams.device)
        self._done = torch.cuda.Event(blocking=True)
        self._runtime = torch.cuda.cudart()
        code = int(self._runtime.cudaHostRegister(self.host.data_ptr(), size, _PORTABLE))
        if code:
            raise StartError(f"{size / 1e6:.0f} MB of host memory can't be page-locked (CUDA error {code})")

    def wait(self) -> None:
        self._done.synchronize()

    def deliver(self, index: int, size: int, work: Callable[[int, torch.Tensor], None]) -> None:
        streams, there = self._streams, self._there[:size]
        with torch.cuda.stream(streams.copying):
            there.copy_(self.host[:size], non_blocking=True)
        streams.working.wait_stream(streams.copying)
        with torch.cuda.stream(streams.working):
            work(index, there)
            self._done.record(streams.working)

    def fetch(self, part: torch.Tensor) -> memoryview:
        """Copies `part` to the host. It must be complete when this thread's current stream has done what it has
        queued."""
        streams, host = self._streams, self.host[: len(part)]
        streams.copying.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(streams.copying):
            host.copy_(part, non_blocking=True)
            self._done.record(streams.copying)
        self._done.synchronize()
        return host.numpy().data

    def close(self) -> None:
        torch.cuda.synchronize(self._streams.device)  # after an error, copies may still be under way
        self._runtime.cudaHostUnregister(self.host.data_ptr())
