from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil
import pytest
import torch

from semipd.internal.v1 import resident_pb2 as pb
from semipd.memory.arenas import SharedArena
from semipd.memory.manifest import (
    ACCOUNT,
    CONTROL,
    POOL,
    WEIGHTS,
    ArenaEntry,
    HandOverFailed,
    Manifest,
    PoolLayout,
    TensorEntry,
    receive,
    send,
)
from semipd.memory.tensors import ALIGNMENT, lay_out, pool_bytes, pool_over, weights_over

LAYOUT = PoolLayout(pages=5, page_size=16, layers=2, kv_heads=1, head_dim=4, dtype="bfloat16")


def manifest_of(*arenas: SharedArena) -> Manifest:
    tensors = (TensorEntry("embed", (3, 4), "float32", 0), TensorEntry("norm", (4,), "bfloat16", 256))
    return Manifest("ab" * 32, tuple(map(ArenaEntry.of, arenas)), tensors, LAYOUT)


@pytest.fixture
def arenas() -> Iterator[list[SharedArena]]:
    with ExitStack() as stack:
        names = (WEIGHTS, POOL, ACCOUNT, CONTROL)
        yield [stack.enter_context(SharedArena.create(name, 4096 * n)) for n, name in enumerate(names, 1)]


@contextmanager
def serving(path: Path, answer: Callable[[socket.socket], object]) -> Iterator[None]:
    """Answers one connection."""

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            answer(connection)

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        thread = threading.Thread(target=serve)
        thread.start()
        yield
        thread.join(10)


def test_a_manifest_is_the_same_after_the_wire(arenas: list[SharedArena]) -> None:
    manifest = manifest_of(*arenas)
    again = Manifest.from_wire(pb.Manifest.FromString(manifest.to_wire().SerializeToString()))
    assert again == manifest


def test_it_travels_with_its_arenas(tmp_path: Path, arenas: list[SharedArena]) -> None:
    manifest = manifest_of(*arenas)
    with serving(tmp_path / "s", lambda c: send(c, manifest, arenas)), ExitStack() as stack:
        got, mapped = receive(stack, tmp_path / "s")
        assert got == manifest
        assert {name: arena.bytes // 4096 for name, arena in mapped.items()} == {
            WEIGHTS: 1,
            POOL: 2,
            ACCOUNT: 3,
            CONTROL: 4,
        }
        pool, weights = mapped[POOL], mapped[WEIGHTS]
        assert isinstance(pool, SharedArena)
        assert isinstance(weights, SharedArena)
        arenas[1].buffer[8191] = 9
        assert pool.buffer[8191] == 9
        assert weights.buffer.readonly


def test_only_what_is_asked_for_stays_open(tmp_path: Path, arenas: list[SharedArena]) -> None:
    before = psutil.Process().num_fds()
    with ExitStack() as stack:
        with serving(tmp_path / "s", lambda c: send(c, manifest_of(*arenas), arenas)):
            _, mapped = receive(stack, tmp_path / "s", only=[ACCOUNT])
        assert set(mapped) == {ACCOUNT}
        assert psutil.Process().num_fds() == before + 2, "the arena's, and the one that mmap keeps"
    assert psutil.Process().num_fds() == before


@pytest.mark.parametrize(
    "sent",
    [b"", b"\0\0", b"\0\0\0\x09short", b"\0\0\0\x03\xff\xff\xff"],
    ids=["nothing", "half a length", "cut off", "no manifest"],
)
def test_what_is_no_manifest_is_refused(tmp_path: Path, sent: bytes) -> None:
    with serving(tmp_path / "s", lambda c: c.sendall(sent)), ExitStack() as stack, pytest.raises(HandOverFailed):
        receive(stack, tmp_path / "s")


def test_arenas_that_did_not_come_are_missed(tmp_path: Path, arenas: list[SharedArena]) -> None:
    with (
        serving(tmp_path / "s", lambda c: send(c, manifest_of(*arenas), arenas[:2])),
        ExitStack() as stack,
        pytest.raises(HandOverFailed, match="4 arenas were announced, and 2 descriptors came"),
    ):
        receive(stack, tmp_path / "s")


def test_an_arena_that_the_resident_has_not_is_missed(tmp_path: Path, arenas: list[SharedArena]) -> None:
    with (
        serving(tmp_path / "s", lambda c: send(c, manifest_of(*arenas[:3]), arenas[:3])),
        ExitStack() as stack,
        pytest.raises(HandOverFailed, match="no arena 'control'"),
    ):
        receive(stack, tmp_path / "s")


def on_gpu(name: str, handle: bytes = bytes(range(64))) -> ArenaEntry:
    return ArenaEntry(name, 1 << 30, handle)


def test_memory_on_a_gpu_goes_by_its_handle_and_is_the_same_after_the_wire(arenas: list[SharedArena]) -> None:
    """Descriptors are counted without it."""
    account, control = (ArenaEntry.of(arena) for arena in arenas[2:])
    manifest = Manifest("ab", (on_gpu(WEIGHTS), account, on_gpu(POOL), control), (), LAYOUT)
    wire = pb.Manifest.FromString(manifest.to_wire().SerializeToString())
    assert [arena.WhichOneof("handle") for arena in wire.arenas] == ["cuda_ipc", "descriptor"] * 2
    assert [arena.descriptor for arena in wire.arenas] == [0, 0, 0, 1]
    assert Manifest.from_wire(wire) == manifest


def test_who_wants_nothing_on_the_gpu_gets_the_rest(tmp_path: Path, arenas: list[SharedArena]) -> None:
    """This process has nothing of CUDA with which it could map the others."""
    entries = (on_gpu(WEIGHTS), on_gpu(POOL), *(ArenaEntry.of(arena) for arena in arenas[2:]))
    manifest = Manifest("ab", entries, (), LAYOUT)
    with serving(tmp_path / "s", lambda c: send(c, manifest, arenas[2:])), ExitStack() as stack:
        got, mapped = receive(stack, tmp_path / "s", only=[ACCOUNT, CONTROL])
        assert got == manifest
        assert {name: arena.bytes for name, arena in mapped.items()} == {ACCOUNT: 12288, CONTROL: 16384}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_process_without_a_gpu_is_told_so(tmp_path: Path, arenas: list[SharedArena]) -> None:
    entries = (on_gpu(WEIGHTS), on_gpu(POOL), *(ArenaEntry.of(arena) for arena in arenas[2:]))
    with (
        serving(tmp_path / "s", lambda c: send(c, Manifest("ab", entries, (), LAYOUT), arenas[2:])),
        ExitStack() as stack,
        pytest.raises(HandOverFailed, match="GPU"),
    ):
        receive(stack, tmp_path / "s")


@pytest.mark.parametrize(
    ("arena", "complaint"),
    [
        (pb.Arena(name=WEIGHTS, bytes=9, cuda_ipc=b"short"), "'weights': a CUDA IPC handle has 64 bytes, and 5 came"),
        (pb.Arena(name=WEIGHTS, bytes=9), "'weights' came without a descriptor or CUDA IPC handle"),
        (pb.Arena(name=WEIGHTS, bytes=9, descriptor=3), "'weights' came without a descriptor"),
    ],
    ids=["half a handle", "no handle", "another's descriptor"],
)
def test_an_arena_that_cannot_be_found_is_refused(arena: pb.Arena, complaint: str) -> None:
    with pytest.raises(HandOverFailed, match=complaint):
        Manifest.from_wire(pb.Manifest(arenas=[arena]))


def test_nobody_at_the_socket(tmp_path: Path) -> None:
    with ExitStack() as stack, pytest.raises(HandOverFailed):
        receive(stack, tmp_path / "nobody")


def test_tensors_lie_side_by_side_aligned_and_share_the_arena() -> None:
    entries, size = lay_out([("a", (3, 5), "float32"), ("b", (7,), "bfloat16"), ("c", (2, 2), "float16")])
    assert all(e.offset % ALIGNMENT == 0 for e in entries)
    with SharedArena.create(WEIGHTS, size) as arena:
        one, other = weights_over(arena, entries), weights_over(arena, entries)
        for number, name in enumerate("abc", 1):
            one[name].fill_(number)
        assert [float(other[name].sum()) for name in "abc"] == [15.0, 14.0, 12.0]
        assert [other[name].dtype for name in "abc"] == [torch.float32, torch.bfloat16, torch.float16]
        assert other["a"].shape == (3, 5)


def test_the_pool_is_one_tensor_of_the_layout() -> None:
    with SharedArena.create(POOL, pool_bytes(LAYOUT)) as arena:
        pool = pool_over(arena, LAYOUT)
        assert pool.shape == (2, 5, 2, 16, 1, 4)
        assert pool.nbytes == arena.bytes
        pool[1, 4, 1, 15] = 3.0
        assert torch.all(pool_over(arena, LAYOUT)[1, 4, 1, 15] == 3.0)
