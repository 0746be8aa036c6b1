"""The resident as a process of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file, save_file

from semipd.core.config import ServerConfig, resolve
from semipd.memory.account import COORDINATOR, Holder, PageAccount, Role
from semipd.memory.arenas import SharedArena
from semipd.memory.control import PublishedSplit
from semipd.memory.manifest import HandOverFailed, receive
from semipd.workers.attach import attach
from support.checkpoint import save_llama
from support.resident import Resident
from support.server import PATIENCE_S, until


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_llama(tmp_path_factory.mktemp("model"))


@pytest.fixture
def run_dir() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="semipd-") as folder:
        yield Path(folder)


def test_everybody_maps_the_same_bytes(checkpoint: Path, run_dir: Path) -> None:
    with Resident(run_dir, model=str(checkpoint)) as resident, attach(run_dir) as one, attach(run_dir) as other:
        assert resident.events[-1]["event"] == "ready"
        assert resident.events[0]["event"] == "loading"
        saved = load_file(checkpoint / "model.safetensors")
        assert torch.equal(one.weights["embed"], saved["model.embed_tokens.weight"])
        one.pool[1, 3, 0, 5] = 7.0
        assert torch.equal(other.pool[1, 3, 0, 5], one.pool[1, 3, 0, 5])
        lease = one.account.open(Holder(Role.PREFILL, 1))
        one.account.take(lease, 2, Holder(Role.PREFILL, 1))
        assert other.account.counts().owned == 2


def test_the_memory_survives_the_death_of_those_who_use_it(checkpoint: Path, run_dir: Path) -> None:
    """A process takes the lock and pages, writes into the pool, and is killed."""
    victim = f"""
import os, signal
from pathlib import Path
from semipd.memory.account import COORDINATOR, Holder, Role
from semipd.workers.attach import attach
with attach(Path({str(run_dir)!r})) as a:
    me = Holder(Role.DECODE, 9)
    a.account.take(a.account.open(me), 3, me)
    a.pool[0, 0] = 5.0
    os.kill(os.getpid(), signal.SIGKILL)
"""
    with Resident(run_dir, model=str(checkpoint)) as resident:
        assert subprocess.run([sys.executable, "-c", victim], check=False).returncode == -signal.SIGKILL
        assert resident.process.poll() is None
        with attach(run_dir) as after:
            assert torch.all(after.pool[0, 0] == 5.0)
            (lease,) = after.account.reassign(Holder(Role.DECODE, 9), COORDINATOR)
            assert after.account.release(lease, COORDINATOR) == 3
            after.account.check()


def test_account_and_control_block_can_be_had_alone_and_without_torch(checkpoint: Path, run_dir: Path) -> None:
    program = f"""
import sys
from pathlib import Path
from semipd.memory.attach import AttachedAccount
from semipd.memory.control import PublishedSplit
held = AttachedAccount(Path({str(run_dir / "resident.sock")!r}))
held.control.set_split(PublishedSplit(68, 64, 3), decided_ns=5)
print(held.account.counts().total, "torch" in sys.modules, "cupy" in sys.modules)
held.close()
"""
    with Resident(run_dir, model=str(checkpoint), kv_pages=40), attach(run_dir) as worker:
        assert worker.control.split() == PublishedSplit(0, 0)
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
        assert done.stdout.split() == ["40", "False", "False"]
        assert worker.control.split() == PublishedSplit(68, 64, 3), "what the coordinator decides, workers see"


def test_the_same_checkpoint_has_the_same_content_hash(checkpoint: Path, run_dir: Path) -> None:
    hashes = set()
    for _ in range(2):
        with Resident(run_dir, model=str(checkpoint)), ExitStack() as stack:
            hashes.add(receive(stack, run_dir / "resident.sock")[0].content_hash)
    assert len(hashes) == 1


def test_only_the_owner_may_connect(checkpoint: Path, run_dir: Path) -> None:
    with Resident(run_dir, model=str(checkpoint)):
        assert (run_dir / "resident.sock").stat().st_mode & 0o777 == 0o600


def test_dummy_weights_need_no_file(checkpoint: Path, run_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((checkpoint / "config.json").read_text())
    with Resident(run_dir, model=str(tmp_path), load_format="dummy"), attach(run_dir) as attached:
        assert torch.all(torch.isfinite(attached.weights["embed"]))
        assert attached.weights["embed"].std() > 0


def test_what_it_has_in_memory_is_said_when_it_is_ready(checkpoint: Path, run_dir: Path) -> None:
    with Resident(run_dir, model=str(checkpoint), kv_pages=40) as resident, attach(run_dir) as attached:
        ready = resident.events[-1]
        assert ready["device"] == "cpu"
        assert ready["weights_bytes"] >= sum(tensor.nbytes for tensor in attached.weights.values())
        assert ready["pool_bytes"] == attached.pool.nbytes
        assert ready["content_hash"] == attached.manifest.content_hash


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_memory_on_a_gpu_that_is_not_there_is_refused(checkpoint: Path, run_dir: Path) -> None:
    with Resident(run_dir, model=str(checkpoint), device="cuda") as resident:
        assert resident.process.wait(PATIENCE_S) == 1
        assert resident.events[-1]["kind"] == "StartError"
        assert "GPU" in resident.events[-1]["error"]


def broken(checkpoint: Path, folder: Path, change: Any) -> Path:
    for name in ("config.json", "generation_config.json"):
        (folder / name).write_text((checkpoint / name).read_text())
    tensors = load_file(checkpoint / "model.safetensors")
    change(folder, tensors)
    save_file(tensors, folder / "model.safetensors")
    return folder


def lose(_folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    del tensors["model.layers.1.mlp.down_proj.weight"]


def misshape(_folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    tensors["model.norm.weight"] = torch.ones(63)


def poison(_folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    tensors["lm_head.weight"][3, 4] = torch.nan


def add(_folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    tensors["model.layers.0.adapter.weight"] = torch.ones(2)


def other_family(folder: Path, _tensors: dict[str, torch.Tensor]) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "architectures": ["MambaForCausalLM"]}))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lose, "model.layers.1.mlp.down_proj.weight"),
        (misshape, "model.norm.weight"),
        (poison, "lm_head.weight"),
        (add, "model.layers.0.adapter.weight"),
        (other_family, "MambaForCausalLM"),
    ],
)
def test_a_bad_checkpoint_is_refused_by_name(
    checkpoint: Path, run_dir: Path, tmp_path: Path, change: Any, named: str
) -> None:
    with Resident(run_dir, model=str(broken(checkpoint, tmp_path, change))) as resident:
        assert resident.process.wait(PATIENCE_S) == 1
        assert named in resident.events[-1]["error"]
    with pytest.raises(HandOverFailed), ExitStack() as stack:
        receive(stack, run_dir / "resident.sock")


def test_a_pool_too_small_for_one_context_is_refused_with_the_numbers(checkpoint: Path, run_dir: Path) -> None:
    with Resident(run_dir, model=str(checkpoint), kv_pages=31) as resident:
        assert resident.process.wait(PATIENCE_S) == 1
        error = resident.events[-1]["error"]
        assert "--kv-pages 31" in error
        assert "512 tokens needs 32" in error


def has_ended(process: psutil.Process) -> bool:
    """A zombie has: in a container, whoever adopted it may never ask."""
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_it_ends_with_its_parent(checkpoint: Path, run_dir: Path) -> None:
    (run_dir / "config.json").write_text(resolve(ServerConfig(model=str(checkpoint)), "cpu").to_json())
    command = [sys.executable, "-m", "semipd.wire.child", "semipd.workers.resident", "--run-dir", str(run_dir)]
    parent = f"""
import subprocess, time
child = subprocess.Popen({command!r}, stdout=subprocess.PIPE)
while b"ready" not in child.stdout.readline():
    pass
print(child.pid, flush=True)
time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        child = psutil.Process(int(process.stdout.readline()))
        process.kill()
        assert until(lambda: has_ended(child))


def test_sigterm_ends_it_in_order(checkpoint: Path, run_dir: Path) -> None:
    with Resident(run_dir, model=str(checkpoint)) as resident:
        os.kill(resident.process.pid, signal.SIGTERM)
        assert resident.process.wait(PATIENCE_S) == 0


def test_the_account_is_laid_out_where_the_manifest_says(checkpoint: Path, run_dir: Path) -> None:
    with Resident(run_dir, model=str(checkpoint), kv_pages=48), ExitStack() as stack:
        manifest, arenas = receive(stack, run_dir / "resident.sock", only=["account"])
        assert set(arenas) == {"account"}
        account = arenas["account"]
        assert isinstance(account, SharedArena)
        assert PageAccount.attach(account.buffer).counts().total == manifest.pool.pages == 48
