"""All checks, in the order in which they are shown."""

from __future__ import annotations

from semipd.cli.checkup import kernels, nvidia, packages, profiles, system
from semipd.cli.checkup.finding import Finding
from semipd.cli.checkup.kernels import Kernels
from semipd.cli.checkup.nvidia import Nvidia
from semipd.cli.checkup.packages import Packages
from semipd.cli.checkup.profiles import Profiles
from semipd.cli.checkup.system import System
from semipd.coordinator.devices import INSTALL, INSTALL_TORCH, ChosenDevice, choose_backend, choose_device, choose_mps
from semipd.memory.nvml import Driver


def examine() -> tuple[Finding, ...]:
    """Looks at this machine."""
    gpus, installed = nvidia.survey_nvidia(), packages.survey_packages()
    found = profiles.survey_profiles(_device(installed, gpus))
    return judge(installed, gpus, system.survey_system(), kernels.survey_kernels(gpus), found)


def judge(
    installed: Packages,
    gpus: Nvidia,
    machine: System,
    compiled: Kernels = kernels.NONE,
    recorded: Profiles = profiles.NO_PROFILES,
) -> tuple[Finding, ...]:
    gpu, device = bool(gpus.gpus), _device(installed, gpus)
    mps = choose_mps("auto", device, gpus.mps_control, None)
    backend = choose_backend("auto", device, mps, range(machine.cpus))
    return (
        packages.check_python(installed),
        packages.check_torch(installed, gpu),
        nvidia.check_gpu(gpus, device),
        nvidia.check_partition(device, backend),
        nvidia.check_driver(gpus),
        nvidia.check_mps(gpus),
        nvidia.check_green_contexts(gpus, installed.versions.get("cuda-bindings")),
        *packages.check_gpu_packages(installed, gpu),
        kernels.check_kernels(compiled, gpus, installed.versions.get("flashinfer-python")),
        kernels.check_nvcc(compiled, gpus),
        profiles.check_profiles(recorded, device),
        system.check_cpus(machine),
        system.check_memory(machine),
        system.check_shared_memory(machine),
        system.check_mutex(machine),
        system.check_open_files(machine),
        *packages.check_needed(installed),
    )


def _device(installed: Packages, gpus: Nvidia) -> ChosenDevice:
    return choose_device("auto", Driver(gpus.driver, gpus.cuda, gpus.gpus, gpus.problem), _missing(installed))


def _missing(installed: Packages) -> dict[str, str]:
    """Returns what `devices.missing_packages` returns, from what was seen. Triton comes with torch's CUDA build."""
    lacking = {name: INSTALL for name in ("cupy", "cuda-bindings") if name not in installed.versions}
    return lacking if installed.torch_cuda else {**lacking, "a CUDA build of torch": INSTALL_TORCH}
