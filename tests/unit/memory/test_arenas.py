from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from semipd.core.errors import StartError
from semipd.memory.arenas import SharedArena, available_bytes

GB = 10**9


def test_what_one_mapping_writes_the_other_reads() -> None:
    with SharedArena.create("pool", 4096) as one, SharedArena("pool", os.dup(one.fd), 4096) as other:
        assert bytes(one.buffer) == bytes(4096), "zeroed"
        one.buffer[4090:4096] = b"tokens"
        assert bytes(other.buffer[4090:]) == b"tokens"


def test_it_can_neither_grow_nor_shrink_under_those_who_map_it() -> None:
    with SharedArena.create("pool", 8192) as arena:
        for size in (4096, 16384):
            with pytest.raises(PermissionError):
                os.ftruncate(arena.fd, size)


def test_more_than_there_is_is_refused_with_the_numbers() -> None:
    wanted = available_bytes() + 50 * GB
    with pytest.raises(StartError, match=rf"{wanted / GB:.3f} GB .* 'weights' .* about [\d.]+ GB are available"):
        SharedArena.create("weights", wanted)


def test_an_arena_smaller_than_announced_is_refused_and_its_descriptor_closed() -> None:
    with SharedArena.create("account", 4096) as arena:
        fd = os.dup(arena.fd)
        with pytest.raises(StartError, match="4096 bytes, and 5000 were announced"):
            SharedArena("account", fd, 5000)
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)


def test_a_view_outlives_the_arena_that_was_closed() -> None:
    with SharedArena.create("pool", 4096) as arena:
        view = memoryview(arena.buffer)
        fd = arena.fd
    view[0] = 7
    assert view[0] == 7
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


def test_a_write_to_memory_that_is_mapped_unwritable_ends_the_writer_alone(tmp_path: Path) -> None:
    program = """
import sys, torch
from semipd.memory.arenas import SharedArena
from semipd.memory.manifest import TensorEntry
from semipd.memory.tensors import weights_over
arena = SharedArena("weights", int(sys.argv[1]), 4096, writable=False)
weight = weights_over(arena, [TensorEntry("w", (4, 8), "float32", 256)])["w"]
print(float(weight.sum()), flush=True)
weight[0, 0] = 1.0
"""
    with SharedArena.create("weights", 4096) as arena:
        os.set_inheritable(arena.fd, True)
        command = [sys.executable, "-W", "error", "-c", program, str(arena.fd)]
        writer = subprocess.run(command, pass_fds=[arena.fd], capture_output=True, text=True, check=False, cwd=tmp_path)
        assert writer.stdout == "0.0\n", writer.stderr
        assert writer.returncode == -signal.SIGSEGV
        assert bytes(arena.buffer) == bytes(4096)
