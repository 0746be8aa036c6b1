"""Bytes through buffers: all of them, in order, and a clear word where they are not to be had."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from semipd.engine.staging import FileSpan, ReadFailed, Staging

CPU = torch.device("cpu")


@pytest.fixture
def file(tmp_path: Path) -> Iterator[int]:
    path = tmp_path / "bytes"
    path.write_bytes(os.urandom(10_000))
    fd = os.open(path, os.O_RDONLY)
    yield fd
    os.close(fd)


@pytest.mark.parametrize("buffers", [1, 3, 16])
def test_spans_come_in_order_whoever_reads_first(file: int, buffers: int) -> None:
    spans = [FileSpan(file, offset, size) for offset, size in ((7, 100), (0, 64), (9_990, 10), (5_000, 1), (1, 100))]
    got = []
    with Staging(CPU, buffers=buffers, buffer_bytes=100) as staging:
        staging.stream(spans, lambda index, there: got.append((index, bytes(there.numpy()))))
    assert got == [(index, os.pread(file, span.bytes, span.offset)) for index, span in enumerate(spans)]


def test_nothing_to_read_is_nothing_to_deliver() -> None:
    with Staging(CPU, buffers=2, buffer_bytes=100) as staging:
        staging.stream([], lambda index, there: pytest.fail("there was nothing"))


def test_a_file_that_ends_too_early_is_told_by_the_spans_place(file: int) -> None:
    delivered = []
    with (
        Staging(CPU, buffers=2, buffer_bytes=100) as staging,
        pytest.raises(ReadFailed, match="ends before it") as failed,
    ):
        staging.stream([FileSpan(file, 0, 50), FileSpan(file, 9_950, 51)], lambda index, there: delivered.append(index))
    assert failed.value.index == 1
    assert delivered == [0]


def test_a_file_that_cannot_be_read_is_told_by_the_spans_place(tmp_path: Path) -> None:
    fd = os.open(tmp_path / "new", os.O_WRONLY | os.O_CREAT)
    try:
        with (
            Staging(CPU, buffers=2, buffer_bytes=100) as staging,
            pytest.raises(ReadFailed, match="Bad file descriptor"),
        ):
            staging.stream([FileSpan(fd, 0, 50)], lambda index, there: None)
    finally:
        os.close(fd)


def test_it_can_be_used_again_after_an_error(file: int) -> None:
    def refuse(index: int, there: torch.Tensor) -> None:
        raise ValueError("no")

    got = []
    with Staging(CPU, buffers=2, buffer_bytes=100) as staging:
        with pytest.raises(ValueError, match="no"):
            staging.stream([FileSpan(file, 0, 50)] * 5, refuse)
        staging.stream([FileSpan(file, 3, 4)], lambda index, there: got.append(bytes(there.numpy())))
    assert got == [os.pread(file, 4, 3)]


def test_no_more_buffers_are_in_use_than_there_are(file: int) -> None:
    """Readers run ahead of delivery, by the buffers that are free and not further."""
    addresses = set()
    with Staging(CPU, buffers=3, buffer_bytes=100) as staging:
        staging.stream(
            [FileSpan(file, n, 100) for n in range(50)], lambda index, there: addresses.add(there.data_ptr())
        )
    assert len(addresses) == 3


def test_tensors_are_fetched_in_pieces_by_several_threads_at_once() -> None:
    tensors = [torch.randn(n * 37, 3) for n in range(1, 9)]
    got: dict[int, bytes] = {}

    def fetch(index: int) -> None:
        got[index] = b"".join(bytes(piece) for piece in staging.fetch(tensors[index]))

    with Staging(CPU, buffers=2, buffer_bytes=100) as staging:
        threads = [threading.Thread(target=fetch, args=(index,)) for index in range(len(tensors))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert got == {index: tensor.numpy().tobytes() for index, tensor in enumerate(tensors)}
