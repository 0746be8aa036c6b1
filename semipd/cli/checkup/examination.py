"""All checks, in the order in which they are shown."""

from __future__ import annotations

from semipd.cli.checkup import nvidia, packages, system
from semipd.cli.checkup.finding import Finding
from semipd.cli.checkup.nvidia import Nvidia
from semipd.cli.checkup.packages import Packages
from semipd.cli.checkup.system import System


def examine() -> tuple[Finding, ...]:
    """Looks at this machine."""
    return judge(packages.survey_packages(), nvidia.survey_nvidia(), system.survey_system())


def judge(installed: Packages, gpus: Nvidia, machine: System) -> tuple[Finding, ...]:
    gpu = bool(gpus.gpus)
    return (
        packages.check_python(installed),
        packages.check_torch(installed, gpu),
        nvidia.check_gpu(gpus, machine.cpus),
        nvidia.check_driver(gpus),
        nvidia.check_mps(gpus),
        nvidia.check_green_contexts(gpus, installed.versions.get("cuda-bindings")),
        *packages.check_gpu_packages(installed, gpu),
        system.check_cpus(machine),
        system.check_memory(machine),
        system.check_shared_memory(machine),
        system.check_mutex(machine),
        system.check_open_files(machine),
        *packages.check_needed(installed),
    )
