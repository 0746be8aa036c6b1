"""Compiled kernels: which are wanted and found, and how they get there, with a stand-in for FlashInfer's package."""

from __future__ import annotations

import fcntl
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from semipd.core.errors import ConfigError
from semipd.core.model import parse_model_config
from semipd.engine import flashinfer_build as fb
from semipd.engine import flashinfer_kernels as fk
from semipd.engine.flashinfer_kernels import Kernel, KernelError, KernelFile
from support import flashinfer_stand_in as stand_in

LLAMA = parse_model_config(
    {
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": 1000,
        "hidden_size": 512,
        "intermediate_size": 512,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 512,
    }
)
FA3, FA2 = Kernel("fa3", "bfloat16", 128), Kernel("fa2", "bfloat16", 128)
H200, A100 = (9, 0), (8, 0)


@pytest.fixture
def flashinfer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The stand-in, installed, and an empty set; the folder of FlashInfer's own kernels."""
    site, tools = tmp_path / "site", tmp_path / "bin"
    tools.mkdir()
    stand_in.install(site)
    stand_in.install_tools(tools)
    monkeypatch.syspath_prepend(site)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join((str(site), os.environ.get("PYTHONPATH", ""))))
    monkeypatch.setenv("PATH", os.pathsep.join((str(tools), os.environ["PATH"])))
    monkeypatch.setenv("SEMIPD_KERNELS", str(tmp_path / "set"))
    monkeypatch.setenv("FLASHINFER_WORKSPACE_BASE", str(tmp_path / "cache"))
    for name in ("CUDA_HOME", "CUDA_PATH", "FLASHINFER_NVCC", "FLASHINFER_DISABLE_JIT", "CXX"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("FLASHINFER_DISABLE_JIT", "")  # `load` sets it; undone with the rest
    yield site / "flashinfer" / "data" / "aot"
    for name in [name for name in sys.modules if name.partition(".")[0] == "flashinfer"]:
        del sys.modules[name]


def put(folder: Path, kernel: Kernel, text: str = "compiled") -> None:
    (folder / kernel.name).mkdir(parents=True)
    (folder / kernel.name / f"{kernel.name}.so").write_text(text)


def found(kernel: Kernel) -> KernelFile:
    file = fk.find(kernel, H200)
    assert file is not None
    return file


def build(kernels: Sequence[Kernel], capability: tuple[int, int] = H200) -> tuple[list[Path], list[fb.BuildProgress]]:
    told: list[fb.BuildProgress] = []
    return fb.build(kernels, capability, 1, told.append), told


# --- what is wanted -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "dtype", "capability", "wanted"),
    [
        ({}, "bfloat16", (9, 0), [FA3]),
        ({}, "bfloat16", (8, 6), [FA2]),
        ({}, "bfloat16", (10, 0), [FA2]),
        ({"head_dim": 64}, "float16", (9, 0), [Kernel("fa3", "float16", 64)]),
        ({}, "float32", (9, 0), []),
        ({"head_dim": 96}, "bfloat16", (9, 0), []),
        ({"windows": (None, 4096)}, "bfloat16", (9, 0), []),
        ({}, "bfloat16", (7, 5), []),
    ],
)
def test_what_a_model_wants(
    changes: dict[str, Any], dtype: str, capability: tuple[int, int], wanted: list[Kernel]
) -> None:
    assert fk.needed(replace(LLAMA, **changes), dtype, capability) == wanted


@pytest.mark.parametrize("text", ["9.0", "9.0a", "90a", "sm_90a"])
def test_an_architecture_is_understood_as_people_write_it(text: str) -> None:
    assert fk.parse_architecture(text) == (9, 0)


def test_an_architecture_that_is_none_is_refused() -> None:
    with pytest.raises(ConfigError, match="--arch"):
        fk.parse_architecture("hopper")


# --- what is there --------------------------------------------------------------------------------------------------


def test_nothing_is_there_without_flashinfer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fk, "flashinfer_version", lambda: None)
    assert fk.usable_prefill_backend(LLAMA, "bfloat16", H200) is None
    with pytest.raises(KernelError, match=r"semipd\[cuda\]"):
        fb.find_tools()


def test_flashinfers_own_set_comes_first(flashinfer: Path) -> None:
    assert fk.find(FA3, H200) is None
    build([FA3])
    assert found(FA3).origin == "semipd"
    put(flashinfer, FA3)
    assert found(FA3).origin == "flashinfer"


def test_hopper_makes_do_with_the_older_kernel(flashinfer: Path) -> None:
    assert fk.usable_prefill_backend(LLAMA, "bfloat16", H200) is None
    put(flashinfer, FA2)
    assert fk.usable_prefill_backend(LLAMA, "bfloat16", H200) == "fa2"
    put(flashinfer, FA3)
    assert fk.usable_prefill_backend(LLAMA, "bfloat16", H200) == "fa3"
    assert fk.usable_prefill_backend(LLAMA, "bfloat16", A100) == "fa2"


def test_looking_imports_neither_torch_nor_flashinfer(flashinfer: Path) -> None:
    put(flashinfer, FA3)
    assert fk.available(FA3, H200)
    assert "flashinfer" not in sys.modules


# --- building and loading -------------------------------------------------------------------------------------------


def test_a_kernel_that_was_built_is_loaded_and_nothing_compiles_after(flashinfer: Path) -> None:
    (library,), told = build([FA3])

    assert library == found(FA3).path
    assert [(p.done, p.fraction) for p in told] == [(0, 0.0), (0, 0.5), (0, 1.0), (1, 0.0)]
    fk.load(FA3, H200)
    assert os.environ["FLASHINFER_DISABLE_JIT"] == "1"
    environment = sys.modules["flashinfer.jit.env"]
    assert flashinfer == environment.FLASHINFER_AOT_DIR


def test_a_set_serves_one_architecture(flashinfer: Path) -> None:
    build([FA2], (8, 6))
    assert fk.available(FA2, (8, 6))
    assert not fk.available(FA2, (8, 0))


def test_a_kernel_that_is_absent_or_damaged_is_not_loaded(flashinfer: Path) -> None:
    with pytest.raises(KernelError, match="kernels build"):
        fk.load(FA3, H200)
    put(flashinfer, FA3, "half")
    with pytest.raises(KernelError, match="invalid ELF header, and compiling is off: 1"):
        fk.load(FA3, H200)


def test_a_failed_compilation_names_the_first_error_and_the_log(
    flashinfer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BROKEN_KERNEL", "1")

    with pytest.raises(KernelError, match="no such template") as failure:
        build([FA3])

    log = str(failure.value).rpartition("log: ")[2]
    with open(log, encoding="utf-8") as file:
        assert "build stopped" in file.read()
    assert not fk.available(FA3, H200)


def test_what_was_built_before_a_failure_stays(flashinfer: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken_from_the_second(progress: fb.BuildProgress) -> None:
        if progress.done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fb.build([FA3, FA2], H200, 1, broken_from_the_second)

    assert fk.available(FA3, H200)
    assert not fk.available(FA2, H200)


@pytest.mark.parametrize(("tool", "hint"), [("nvcc", "CUDA toolkit"), ("ninja", "ninja"), ("c++", "g\\+\\+")])
def test_a_missing_tool_is_named(flashinfer: Path, monkeypatch: pytest.MonkeyPatch, tool: str, hint: str) -> None:
    program = fb._program
    monkeypatch.setattr(fb, "_program", lambda name: None if name.rpartition("/")[2] == tool else program(name))
    with pytest.raises(KernelError, match=hint):
        build([FA3])


def test_a_name_that_flashinfer_does_not_give_is_refused(flashinfer: Path) -> None:
    attention = flashinfer.parent.parent / "jit" / "attention.py"
    attention.write_text(attention.read_text().replace("batch_prefill_with", "prefill_batch_with"))
    with pytest.raises(KernelError, match="doesn't know this version of FlashInfer"):
        build([FA3])


def test_two_builds_do_not_meet_in_a_set(flashinfer: Path) -> None:
    folder = fk.kernel_set("0.6.18", H200)
    folder.mkdir(parents=True)
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(KernelError, match="under way"):
            build([FA3])
