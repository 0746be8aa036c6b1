from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from semipd.cli.checkup.examination import judge
from semipd.cli.checkup.finding import State
from semipd.cli.checkup.kernels import Kernels
from semipd.cli.checkup.nvidia import Nvidia, mps_is_running, survey_nvidia
from semipd.cli.checkup.packages import NEEDED, Packages, dotted, numbers
from semipd.cli.checkup.profiles import NO_PROFILES, Profiles, survey_profiles
from semipd.cli.checkup.report import can_serve, conclusion
from semipd.cli.checkup.system import System, cpu_quota
from semipd.cli.main import app
from semipd.coordinator.devices import ChosenDevice
from semipd.memory.nvml import Gpu, Nvml, NvmlError

VERSIONS = {**{name: dotted(least) for name, least in NEEDED.items()}, "torch": "2.13.0+cpu"}
INSTALLED = Packages((3, 11, 7), VERSIONS, torch_cuda=None)
GPU_VERSIONS = {"flashinfer-python": "0.6.18", "cupy": "14.2.0", "cuda-bindings": "13.0.0", "triton": "3.6.0"}
GPU_PACKAGES = ("FlashInfer", "CuPy", "cuda-bindings", "Triton")
NO_GPU = Nvidia(None, None, (), None, False)
H200 = Gpu("NVIDIA H200", 141 * 2**30, (9, 0))
ONE_GPU = Nvidia("580.1", (13, 0), (H200,), "/usr/bin/nvidia-cuda-mps-control", False)
MACHINE = System(
    cpus=8,
    cpu_quota=None,
    memory_bytes=64 * 10**9,
    shm_bytes=10**9,
    memfd_problem="",
    mutex_problem="",
    open_files=65536,
    open_files_hard=65536,
)


def states(installed: Packages = INSTALLED, gpus: Nvidia = NO_GPU, machine: System = MACHINE) -> dict[str, State]:
    return {f.name: f.state for f in judge(installed, gpus, machine)}


def without(name: str) -> Packages:
    return replace(INSTALLED, versions={k: v for k, v in VERSIONS.items() if k != name})


def test_a_machine_without_a_gpu_can_serve() -> None:
    findings = judge(INSTALLED, NO_GPU, MACHINE)
    assert can_serve(findings)
    by_name = {f.name: f for f in findings}
    assert by_name["partition"].value == "cores, on cpu"
    for name in ("driver", "MPS", "green contexts", *GPU_PACKAGES, "prefill kernels"):
        assert by_name[name].state is State.NEEDLESS


def test_one_cpu_cannot_be_divided() -> None:
    findings = {f.name: f for f in judge(INSTALLED, NO_GPU, replace(MACHINE, cpus=1))}
    assert findings["CPUs"].state is State.LESS
    assert findings["partition"].value == "none, on cpu"


@pytest.mark.parametrize("name", [*NEEDED, "torch"])
def test_a_needed_package_that_is_missing_or_too_old_keeps_a_server_from_running(name: str) -> None:
    assert states(without(name))[name] is State.BAD
    assert states(replace(INSTALLED, versions={**VERSIONS, name: "0.0.1"}))[name] is State.BAD


def test_an_old_python_keeps_a_server_from_running() -> None:
    assert states(replace(INSTALLED, python=(3, 10, 9)))["Python"] is State.BAD


@pytest.mark.parametrize(
    ("trouble", "name"),
    [({"memfd_problem": "Operation not permitted"}, "shared memory"), ({"mutex_problem": "no glibc"}, "robust mutex")],
)
def test_what_workers_share_must_work(trouble: dict[str, Any], name: str) -> None:
    findings = judge(INSTALLED, NO_GPU, replace(MACHINE, **trouble))
    assert {f.name for f in findings if f.state is State.BAD} == {name}
    assert name in conclusion(findings).plain


def test_a_small_machine_serves_with_less() -> None:
    small = replace(MACHINE, memory_bytes=10**9, open_files=256, cpu_quota=1.0)
    found = states(machine=small)
    assert {n for n, s in found.items() if s is State.LESS} == {"memory", "open files", "CPUs", "GPU"}


def test_a_gpu_with_all_that_belongs_to_it() -> None:
    installed = replace(INSTALLED, versions={**VERSIONS, **GPU_VERSIONS}, torch_cuda="13.0")
    findings = {f.name: f for f in judge(installed, ONE_GPU, MACHINE, Kernels((128,), "/usr/bin/nvcc"))}
    for name in ("GPU", "partition", "torch", "driver", "MPS", "green contexts", *GPU_PACKAGES, "prefill kernels"):
        assert findings[name].state is State.GOOD
    assert "GPU" in findings["torch"].consequence
    assert "head size 128" in findings["prefill kernels"].value
    assert findings["partition"].value == "green, on cuda (NVIDIA H200)"


def test_a_gpu_without_what_belongs_to_it() -> None:
    old = replace(ONE_GPU, cuda=(12, 3), mps_control=None)
    found = states(gpus=old)
    for name in ("torch", "driver", "MPS", "green contexts", *GPU_PACKAGES, "prefill kernels"):
        assert found[name] is State.LESS
    assert found["nvcc"] is State.NEEDLESS
    assert can_serve(judge(INSTALLED, old, MACHINE))


def test_kernels_that_are_missing_are_to_be_built_once_flashinfer_is_there() -> None:
    def said(installed: Packages) -> str:
        return next(f.consequence for f in judge(installed, ONE_GPU, MACHINE) if f.name == "prefill kernels")

    assert "install FlashInfer" in said(INSTALLED)
    assert "semipd kernels build" in said(replace(INSTALLED, versions={**VERSIONS, **GPU_VERSIONS}))


def test_without_mps_the_doctor_says_that_the_phases_take_turns() -> None:
    everything = {**VERSIONS, "cupy": "14.2.0", "cuda-bindings": "13.0.0"}
    installed = replace(INSTALLED, versions=everything, torch_cuda="13.0")
    findings = {f.name: f for f in judge(installed, replace(ONE_GPU, mps_control=None), MACHINE)}
    assert (findings["partition"].state, findings["partition"].value) == (State.LESS, "none, on cuda (NVIDIA H200)")
    assert "take turns" in findings["partition"].consequence


def test_a_gpu_that_is_not_used_is_told_with_the_command_that_changes_it() -> None:
    findings = {f.name: f for f in judge(INSTALLED, ONE_GPU, MACHINE)}
    assert "pip install 'semipd[cuda]'" in findings["GPU"].consequence


def test_gpus_of_one_kind_are_counted() -> None:
    findings = {f.name: f for f in judge(INSTALLED, replace(ONE_GPU, gpus=(H200, H200)), MACHINE)}
    assert findings["GPU"].value == "2 x NVIDIA H200, 141 GiB, sm_90"


def test_no_nvml_means_no_driver() -> None:
    def absent() -> Nvml:
        raise OSError("libnvidia-ml.so.1: cannot open shared object file")

    seen = survey_nvidia(absent)
    assert (seen.driver, seen.gpus, seen.problem) == (None, (), "")


def test_a_driver_that_does_not_work_is_told_in_its_own_words() -> None:
    class Broken(Nvml):
        def __init__(self) -> None: ...

        def call(self, name: str, *arguments: object) -> None:
            raise NvmlError("Driver/library version mismatch")

    seen = survey_nvidia(Broken)
    assert seen.problem == "Driver/library version mismatch"
    assert states(gpus=seen)["GPU"] is State.LESS


def test_the_mps_daemon_is_known_by_its_command_line(tmp_path: Path) -> None:
    for pid, command in {"7": b"/usr/bin/vim\0nvidia-cuda-mps-control\0", "8": b""}.items():
        (tmp_path / pid).mkdir()
        (tmp_path / pid / "cmdline").write_bytes(command)
    assert not mps_is_running(tmp_path)
    (tmp_path / "9").mkdir()
    (tmp_path / "9" / "cmdline").write_bytes(b"/usr/bin/nvidia-cuda-mps-control\0-d\0")
    assert mps_is_running(tmp_path)


@pytest.mark.parametrize(("text", "quota"), [("max 100000", None), ("150000 100000", 1.5), ("nonsense", None)])
def test_the_containers_cpu_time(tmp_path: Path, text: str, quota: float | None) -> None:
    (tmp_path / "cpu.max").write_text(text)
    assert cpu_quota(tmp_path) == quota


def test_version_numbers() -> None:
    assert numbers("2.13.0+cpu") == (2, 13, 0)
    assert numbers("6.33.6") > (6, 33)
    assert numbers("3.0.0rc1")[:2] == (3, 0)


def test_the_command_looks_at_this_machine(runner: CliRunner) -> None:
    """The tests themselves run here, so a server can."""
    result = runner.invoke(app, ["doctor", "--json"])
    said = json.loads(result.stdout)
    assert (result.exit_code, said["can_serve"]) == (0, True)
    assert {"Python", "torch", "GPU", "shared memory"} <= {f["name"] for f in said["findings"]}
    assert "what follows" in runner.invoke(app, ["doctor"]).stdout


def test_the_commands_exit_code_says_that_no_server_can_run(runner: CliRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    findings = judge(without("torch"), NO_GPU, MACHINE)
    monkeypatch.setattr("semipd.cli.checkup.examine", lambda: findings)
    assert runner.invoke(app, ["doctor"]).exit_code == 1


@pytest.mark.parametrize(
    ("gpus", "seen", "state", "told"),
    [
        (NO_GPU, NO_PROFILES, State.NEEDLESS, "an estimate from the CPU's cores"),
        (ONE_GPU, NO_PROFILES, State.LESS, "semipd profile --model"),
        (ONE_GPU, Profiles(("profile a",), ()), State.GOOD, "for models of this shape"),
        (ONE_GPU, Profiles(("profile a",), ("b.json: not JSON",)), State.LESS, "without it"),
    ],
)
def test_the_latency_profiles_of_the_gpu(gpus: Nvidia, seen: Profiles, state: State, told: str) -> None:
    installed = replace(INSTALLED, versions={**VERSIONS, **GPU_VERSIONS}, torch_cuda="13.0")
    found = {f.name: f for f in judge(installed, gpus, MACHINE, recorded=seen)}["latency profile"]
    assert found.state is state
    assert told in found.consequence


def test_the_profile_that_ships_is_found_for_its_gpu_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (found,) = survey_profiles(ChosenDevice("cuda", "there", H200)).found
    assert found == "profile h200-llama-3-8b, which ships (llama-3-8b-shape, bfloat16)"
    other = replace(H200, name="NVIDIA L4")
    assert survey_profiles(ChosenDevice("cuda", "there", other)) == NO_PROFILES
    assert survey_profiles(ChosenDevice("cpu", "there")) == NO_PROFILES
