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
    POOL,
    WEIGHTS,
    HandOverFailed,
    Manifest,
    PoolLayout,
    TensorEntry,
    receive,
    send,
)
from semipd.memory.tensors import ALIGNMENT, content_hash, lay_out, pool_bytes, pool_over, weights_over

LAYOUT = PoolLayout(pages=5, page_size=16, layers=2, kv_heads=1, head_dim=4, dtype="bfloat16")


def manifest_of(*arenas: SharedArena) -> Manifest:
    tensors = (TensorEntry("embed", (3, 4), "float32", 0), TensorEntry("norm", (4,), "bfloat16", 256))
    return Manifest("ab" * 32, tuple((a.name, a.bytes) for a in arenas), tensors, LAYOUT)


@pytest.fixture
def arenas() -> Iterator[list[SharedArena]]:
    with ExitStack() as stack:
        names = (WEIGHTS, POOL, ACCOUNT)
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
        assert {name: arena.bytes for name, arena in mapped.items()} == {WEIGHTS: 4096, POOL: 8192, ACCOUNT: 12288}
        arenas[1].buffer[8191] = 9
        assert mapped[POOL].buffer[8191] == 9
        assert mapped[WEIGHTS].buffer.readonly


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
        pytest.raises(HandOverFailed, match="3 arenas were announced, and 2 descriptors came"),
    ):
        receive(stack, tmp_path / "s")


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


@pytest.mark.parametrize(
    "other",
    [
        {"a": torch.ones(2, 3), "c": torch.zeros(4)},
        {"a": torch.ones(3, 2), "b": torch.zeros(4)},
        {"a": torch.ones(2, 3), "b": torch.zeros(4, dtype=torch.int32)},
        {"a": torch.ones(2, 3), "b": torch.tensor([0.0, 0.0, 0.0, 1e-30])},
    ],
    ids=["name", "shape", "type", "one number"],
)
def test_the_content_hash_knows(other: dict[str, torch.Tensor]) -> None:
    weights = {"a": torch.ones(2, 3), "b": torch.zeros(4)}
    assert content_hash(weights) == content_hash({name: tensor.clone() for name, tensor in weights.items()})
    assert content_hash(weights) != content_hash(other)


def test_hashing_tells_how_far_it_is() -> None:
    told: list[tuple[int, int]] = []
    content_hash({"a": torch.ones(2, 3), "b": torch.zeros(4)}, lambda done, total: told.append((done, total)))
    assert told == [(24, 40), (40, 40)]
