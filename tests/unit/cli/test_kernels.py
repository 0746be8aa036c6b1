from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from semipd.cli import exits
from semipd.cli.main import app
from semipd.engine import flashinfer_build
from semipd.engine import flashinfer_kernels as fk
from semipd.engine.flashinfer_kernels import Capability, Kernel, KernelError, KernelFile

HOPPER = ["--arch", "9.0a"]
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 1000,
    "hidden_size": 512,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
    "dtype": "bfloat16",
}


@pytest.fixture
def there(monkeypatch: pytest.MonkeyPatch) -> list[Kernel]:
    """Kernels that are found; empty at first, what is built comes to them."""
    kernels: list[Kernel] = []

    def find(kernel: Kernel, capability: Capability) -> KernelFile | None:
        return KernelFile(Path("/set") / kernel.name / f"{kernel.name}.so", "semipd") if kernel in kernels else None

    def build(todo: list[Kernel], capability: Capability, jobs: int, progress: object) -> list[Path]:
        kernels.extend(todo)
        return []

    monkeypatch.setattr(fk, "find", find)
    monkeypatch.setattr(flashinfer_build, "build", build)
    monkeypatch.setattr(flashinfer_build, "find_tools", lambda: None)
    return kernels


@pytest.fixture
def model(tmp_path: Path) -> list[str]:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    return ["--model", str(tmp_path)]


def test_lists_builds_and_lists_again(runner: CliRunner, there: list[Kernel]) -> None:
    before = runner.invoke(app, ["kernels", "list", *HOPPER])
    assert (before.exit_code, before.stdout.count("missing")) == (exits.FAILED, 2)

    built = runner.invoke(app, ["kernels", "build", *HOPPER])
    assert (built.exit_code, "2 kernels built" in built.stderr) == (exits.OK, True)
    assert [kernel.head_dim for kernel in there] == [64, 128]

    after = runner.invoke(app, ["kernels", "list", *HOPPER])
    assert (after.exit_code, after.stdout.count("semipd: /set")) == (exits.OK, 2)
    assert "All kernels are there." in runner.invoke(app, ["kernels", "build", *HOPPER]).stderr
    assert len(there) == 2
    runner.invoke(app, ["kernels", "build", *HOPPER, "--again"])
    assert len(there) == 4


def test_a_model_says_what_it_wants(runner: CliRunner, there: list[Kernel], model: list[str]) -> None:
    assert runner.invoke(app, ["kernels", "build", *HOPPER, *model]).exit_code == exits.OK
    assert there == [Kernel("fa3", "bfloat16", 128)]
    assert runner.invoke(app, ["kernels", "build", "--arch", "8.6", *model, "--dtype", "float16"]).exit_code == exits.OK
    assert there[1:] == [Kernel("fa2", "float16", 128)]
    nothing = runner.invoke(app, ["kernels", "list", *HOPPER, *model, "--dtype", "float32"])
    assert (nothing.exit_code, "No FlashInfer kernels are wanted" in nothing.stderr) == (exits.OK, True)


def test_what_cannot_be_is_said_and_nothing_is_built(
    runner: CliRunner, there: list[Kernel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("semipd.cli.kernels._capability", lambda: None)
    for arguments, words in (
        ([], "--arch"),
        (["--arch", "hopper"], "--arch"),
        ([*HOPPER, "--dtype", "int4"], "--dtype"),
        ([*HOPPER, "--model", str(tmp_path)], "config.json"),
    ):
        result = runner.invoke(app, ["kernels", "build", *arguments])
        assert (result.exit_code, words in result.stderr) == (exits.USAGE, True)
    assert there == []


def test_a_build_that_fails_says_why(runner: CliRunner, there: list[Kernel], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise KernelError("no nvcc")

    monkeypatch.setattr(flashinfer_build, "find_tools", fail)
    result = runner.invoke(app, ["kernels", "build", *HOPPER])
    assert (result.exit_code, "no nvcc" in result.stderr) == (exits.FAILED, True)


def test_an_interrupted_build_ends_as_one(
    runner: CliRunner, there: list[Kernel], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(flashinfer_build, "build", interrupted)
    assert runner.invoke(app, ["kernels", "build", *HOPPER]).exit_code == exits.INTERRUPTED
