"""Memory on a GPU: arenas that other processes map, and checkpoints that are loaded into them.

Other processes are real ones: in the process that made it, CUDA refuses to open an arena.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from semipd.core.errors import CheckpointError, StartError
from semipd.engine.layout import weight_layout
from semipd.engine.loading import fill_dummy, load_checkpoint, read_model_config
from semipd.engine.staging import Staging
from semipd.memory.device_arena import DeviceArena
from semipd.memory.hashing import content_hash
from semipd.memory.manifest import ACCOUNT, POOL, WEIGHTS, HandOverFailed, TensorEntry, receive
from semipd.memory.tensors import lay_out, weights_over
from semipd.memory.usage import device_usage
from semipd.workers.attach import attach
from support.checkpoint import save_llama
from support.resident import Resident

pytestmark = pytest.mark.gpu

GPU = torch.device("cuda", 0)
MB, GB = 10**6, 10**9


@pytest.fixture
def run_dir() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="semipd-") as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint in float32."""
    return save_llama(tmp_path_factory.mktemp("model"))


def free_bytes() -> int:
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    return torch.cuda.mem_get_info(GPU)[0]


def whole_of(arena: DeviceArena) -> torch.Tensor:
    """[numbers], bfloat16."""
    return weights_over(arena, [TensorEntry("all", (arena.bytes // 2,), "bfloat16", 0)])["all"]


# --- arenas -----------------------------------------------------------------------------------------------------------


def test_an_arena_is_zeroed_though_the_memory_was_somebodys_before() -> None:
    with DeviceArena.create(POOL, 256 * MB) as dirty:
        whole_of(dirty).fill_(torch.nan)
    with DeviceArena.create(POOL, 256 * MB) as arena:
        assert not whole_of(arena).view(torch.uint8).any()


def test_views_are_on_the_arena_and_not_copies() -> None:
    with DeviceArena.create(WEIGHTS, 4096) as arena:
        entries, _ = lay_out([("a", (3, 5), "float32"), ("b", (7,), "bfloat16"), ("c", (2, 2), "float16")])
        one, other = weights_over(arena, entries), weights_over(arena, entries)
        for number, name in enumerate("abc", 1):
            one[name].fill_(number)
        assert [float(other[name].sum()) for name in "abc"] == [15.0, 14.0, 12.0]
        assert [one[name].dtype for name in "abc"] == [torch.float32, torch.bfloat16, torch.float16]
        assert one["a"].device == GPU
        assert [one[e.name].data_ptr() for e in entries] == [arena.address + e.offset for e in entries]


def test_close_frees_it() -> None:
    with DeviceArena.create("first", 4096):  # whatever comes with the first one stays
        pass
    before = free_bytes()
    with DeviceArena.create(POOL, 2 * GB):
        assert before - free_bytes() >= 2 * GB
    assert before - free_bytes() < 16 * MB


def test_close_twice_is_close() -> None:
    arena = DeviceArena.create(POOL, 4096)
    arena.close()
    arena.close()


def test_more_than_there_is_is_refused_with_the_numbers() -> None:
    _, total = torch.cuda.mem_get_info(GPU)
    wanted = total + GB
    complaint = rf"{wanted / GB:.3f} GB of GPU memory for 'pool' are not to be had .* of {total / GB:.3f} GB are free"
    with pytest.raises(StartError, match=complaint):
        DeviceArena.create(POOL, wanted)
    assert torch.ones(3, device=GPU).sum() == 3, "the error is not another's to find"


def test_half_a_handle_is_refused() -> None:
    with pytest.raises(StartError, match="64 bytes, and 10 came"):
        DeviceArena.open(POOL, bytes(10), 4096)


# --- the resident, and those who map its memory ----------------------------------------------------------------------

FIRST = """
import os, signal, sys, torch
from pathlib import Path
from safetensors.torch import load_file
from semipd.memory.account import Holder, Role
from semipd.workers.attach import attach
with attach(Path(sys.argv[1])) as a:
    saved = load_file(sys.argv[2])
    parts = [saved[f"model.layers.1.self_attn.{part}_proj.weight"] for part in "qkv"]
    assert torch.equal(a.weights["layers.1.qkv"].cpu(), torch.cat(parts))
    assert a.weights["embed"].device == a.pool.device == torch.device("cuda", 0)
    assert not a.pool.view(-1).view(torch.uint8).any()
    a.pool[1, 3, 0, 5] = 7.0
    torch.cuda.synchronize()
    me = Holder(Role.DECODE, 9)
    a.account.take(a.account.open(me), 3, me)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_workers_map_one_memory_and_their_death_leaves_it_alone(llama: Path, run_dir: Path) -> None:
    with Resident(run_dir, "cuda", model=str(llama), kv_pages=4096) as resident:
        ready = resident.events[-1]
        assert ready["event"] == "ready", ready
        command = [sys.executable, "-c", FIRST, str(run_dir), str(llama / "model.safetensors")]
        first = subprocess.run(command, capture_output=True, text=True, check=False)
        assert first.returncode == -signal.SIGKILL, first.stderr
        assert resident.process.poll() is None
        with attach(run_dir) as after:
            assert after.pool.shape == (2, 4096, 2, 16, 2, 16)
            assert torch.all(after.pool[1, 3, 0, 5] == 7.0)
            assert int(after.pool.count_nonzero()) == 2 * 16
            assert after.account.counts().owned == 3
            assert after.manifest.content_hash == ready["content_hash"]
            assert content_hash({name: t.cpu() for name, t in after.weights.items()}) == ready["content_hash"]


def test_the_resident_takes_weights_pool_and_a_context(llama: Path, run_dir: Path) -> None:
    before = torch.cuda.mem_get_info(GPU)[1] - free_bytes()
    with Resident(run_dir, "cuda", model=str(llama), kv_memory_gb=4) as resident:
        ready = resident.events[-1]
        assert ready["event"] == "ready", ready
        properties = torch.cuda.get_device_properties(GPU)
        assert (ready["device"], ready["sms"]) == (properties.name, properties.multi_processor_count)
        assert 3.9 * GB < ready["pool_bytes"] <= 4 * GB
        arenas = ready["weights_bytes"] + ready["pool_bytes"]
        assert arenas < ready["device_used_bytes"] - before < arenas + 1.5 * GB
        print(f"besides its arenas: {(ready['device_used_bytes'] - before - arenas) / MB:.0f} MB")


def test_the_pool_leaves_room_for_the_workers_where_nothing_is_said(llama: Path, run_dir: Path) -> None:
    """A model of this size can't use as much: here the longest batch is the limit."""
    with Resident(run_dir, "cuda", model=str(llama), max_running=4, dtype="bfloat16") as resident:
        ready = resident.events[-1]
        assert ready["event"] == "ready", ready
        assert ready["pool_bytes"] == 4 * 512 * (2 * 2 * 2 * 16) * 2


def test_when_the_resident_is_dead_its_memory_cannot_be_mapped(llama: Path, run_dir: Path) -> None:
    with Resident(run_dir, "cuda", model=str(llama), kv_pages=4096) as resident, ExitStack() as stack:
        assert resident.events[-1]["event"] == "ready", resident.events[-1]
        manifest, _ = receive(stack, run_dir / "resident.sock", only=[ACCOUNT])
        before = free_bytes()
        os.kill(resident.process.pid, signal.SIGKILL)
        resident.process.wait()
        (pool,) = (entry for entry in manifest.arenas if entry.name == POOL)
        with pytest.raises(StartError, match="has the process that holds them ended"):
            DeviceArena.open(POOL, pool.cuda_ipc, pool.size)
        assert torch.ones(3, device=GPU).sum() == 3, "the error is not another's to find"
        with pytest.raises(HandOverFailed, match="can't be reached"), attach(run_dir):
            pass
        assert free_bytes() > before


def test_nvml_sees_what_is_in_use() -> None:
    torch.cuda.init()
    uuid = f"GPU-{torch.cuda.get_device_properties(GPU).uuid}"
    before = device_usage(uuid)
    with DeviceArena.create(POOL, 2 * GB):
        usage = device_usage(uuid)
        assert usage.used - before.used >= 2 * GB
        assert usage.total >= usage.used + usage.reserved
    print(json.dumps({"used": usage.used, "reserved": usage.reserved, "processes": dict(usage.processes)}))


# --- checkpoints -----------------------------------------------------------------------------------------------------


def empty(directory: Path, dtype: torch.dtype, device: torch.device) -> dict[str, torch.Tensor]:
    specs = weight_layout(read_model_config(directory), "")
    return {spec.name: torch.full(spec.shape, torch.nan, dtype=dtype, device=device) for spec in specs}


def load_there(directory: Path, dtype: torch.dtype, **options: int) -> dict[str, torch.Tensor]:
    into = empty(directory, dtype, GPU)
    with Staging(GPU, **options) as staging:
        load_checkpoint(directory, read_model_config(directory), into, lambda done, total: None, staging)
    return into


def load_here(directory: Path, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    into = empty(directory, dtype, torch.device("cpu"))
    load_checkpoint(directory, read_model_config(directory), into, lambda done, total: None)
    return into


def same_bits(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        torch.equal(one[name].cpu().view(torch.uint8), other[name].cpu().view(torch.uint8)) for name in one
    )


FAMILIES = ("llama", "llama, biases and explicit head_dim", "qwen3", "qwen2, tied, windows above the first layer")


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("options", [{}, {"buffers": 3, "buffer_bytes": 10_000}], ids=["large buffers", "small"])
def test_a_checkpoint_is_the_same_on_the_gpu_to_the_bit(
    checkpoint: Callable[..., Path], name: str, options: dict[str, int]
) -> None:
    directory = checkpoint(name)
    assert same_bits(load_there(directory, torch.bfloat16, **options), load_here(directory, torch.bfloat16))


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("wanted", [torch.float32, torch.bfloat16, torch.float16])
def test_types_are_converted_as_on_the_cpu(
    llama: Path, tmp_path: Path, stored: torch.dtype, wanted: torch.dtype
) -> None:
    directory = shutil.copytree(llama, tmp_path / "model")
    weights = {name: tensor.to(stored) for name, tensor in load_file(llama / "model.safetensors").items()}
    save_file(weights, directory / "model.safetensors")
    assert same_bits(load_there(directory, wanted, buffers=4, buffer_bytes=4096), load_here(directory, wanted))


NAME = "model.layers.1.self_attn.k_proj.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(NAME), rf"model\.safetensors: {NAME} is missing$"),
        (lambda t: t.update({NAME: t[NAME][:-1].clone()}), rf"{NAME} has shape \[31, 64\], not \[32, 64\]"),
        (lambda t: t.update({NAME: t[NAME].to(torch.int8)}), rf"{NAME} is of type torch\.int8"),
        (lambda t: t[NAME].view(-1)[-1].fill_(torch.nan), rf"model\.safetensors: {NAME} holds numbers .* not finite"),
        (lambda t: t[NAME].view(-1)[0].fill_(1e6), rf"{NAME} holds numbers that are not finite in torch\.float16"),
    ],
    ids=["missing", "misshapen", "integers", "nan", "too large"],
)
def test_a_wrong_tensor_is_refused_by_name(
    llama: Path, tmp_path: Path, change: Callable[[dict[str, torch.Tensor]], object], message: str
) -> None:
    directory = shutil.copytree(llama, tmp_path / "model")
    tensors = load_file(llama / "model.safetensors")
    change(tensors)
    save_file(tensors, directory / "model.safetensors")
    with pytest.raises(CheckpointError, match=message):
        load_there(directory, torch.float16, buffers=4, buffer_bytes=1000)


def test_a_tied_head_that_differs_is_refused(checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    directory = shutil.copytree(checkpoint("qwen2, tied, windows above the first layer"), tmp_path / "model")
    tensors = load_file(directory / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, directory / "model.safetensors")
    load_there(directory, torch.bfloat16, buffers=4, buffer_bytes=1000)
    tensors["lm_head.weight"][-1, -1] += 1
    save_file(tensors, directory / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"lm_head\.weight differs"):
        load_there(directory, torch.bfloat16, buffers=4, buffer_bytes=1000)


def test_dummy_weights_are_the_same_everywhere(llama: Path) -> None:
    model = read_model_config(llama)
    there, again = empty(llama, torch.bfloat16, GPU), empty(llama, torch.bfloat16, GPU)
    here, other = empty(llama, torch.bfloat16, torch.device("cpu")), empty(llama, torch.bfloat16, GPU)
    for into, seed in ((there, 0), (again, 0), (here, 0), (other, 1)):
        fill_dummy(model, into, seed)
    assert same_bits(there, again)
    assert same_bits(there, here)
    assert not same_bits(there, other)


def test_the_hash_is_the_cpus(llama: Path) -> None:
    there = load_there(llama, torch.bfloat16)
    here = {name: tensor.cpu() for name, tensor in there.items()}
    for options in ({}, {"buffers": 3, "buffer_bytes": 1000}):
        with Staging(GPU, **options) as staging:
            assert content_hash(there, fetch=staging.fetch) == content_hash(here)


def test_staging_gives_its_memory_back(llama: Path) -> None:
    load_there(llama, torch.bfloat16)
    before = free_bytes()
    load_there(llama, torch.bfloat16)
    assert before - free_bytes() < 16 * MB


def test_gigabytes_take_seconds(tmp_path: Path) -> None:
    """Dummy weights and their hash, 8 GB of them; the times are printed, and the bound is loose."""
    model = read_model_config(save_llama(tmp_path, hidden_size=64))
    start, middle, end = (torch.cuda.Event(enable_timing=True) for _ in range(3))
    with DeviceArena.create(WEIGHTS, 8 * GB) as arena, Staging(GPU) as staging:
        parts, _ = lay_out([(f"part.{n}", (1000, 500_000), "bfloat16") for n in range(8)])
        into = weights_over(arena, parts)
        start.record()
        fill_dummy(model, into, 0)
        middle.record()
        content_hash(into, fetch=staging.fetch)
        end.record()
        end.synchronize()
        filled, hashed = start.elapsed_time(middle) / 1000, middle.elapsed_time(end) / 1000
    print(f"8 GB filled in {filled:.2f} s, hashed in {hashed:.2f} s")
    assert filled < 5
    assert hashed < 30
