"""The peak rates of a device, from its own data: NVML for a GPU, /proc/cpuinfo for a CPU."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from semipd.memory.nvml import Gpu, cores_per_sm

TENSOR_FLOPS = {(8, 0): 2048, (8, 6): 1024, (8, 9): 1024, (9, 0): 4096, (10, 0): 8192, (10, 3): 8192, (12, 0): 1024}
"""Dense 16-bit floating-point operations of one multiprocessor's tensor cores in a clock, accumulated in 32 bits, by
compute capability. From NVIDIA's data sheets: TFLOP/s over SMs and boost clock (A100, A40, L40S, H100, B200, B300,
RTX PRO 6000)."""
OTHER_TENSOR_FLOPS = 1024
"""The same for a GPU that is not in the table: the least that is in it."""
FMA = 2
"""Floating-point operations of one fused multiplication and addition."""

ASSUMED_SMS = 64
ASSUMED_CLOCK_HZ = 1.5e9
ASSUMED_BYTES_PER_S_AND_SM = 10e9
"""Assumptions for a GPU whose driver doesn't say. Cards have 5 (L4) to 37 (H200) GB/s an SM."""

CPU_CLOCK_HZ = 2.5e9
"""The clock that is assumed where /proc/cpuinfo has none."""
SIMD_FLOPS = (("avx512f", 64), ("avx2", 32), ("asimd", 16))
"""Floating-point operations of one core in a clock in 32 bits, by the first flag that the CPU has: two units, each with
a fused multiplication and addition on 16, 8 or 4 numbers."""
OTHER_SIMD_FLOPS = 8
CPU_BYTES_PER_S_AND_CORE = 6e9
"""Memory bandwidth that one core can use: measured values are 5 to 15 GB/s; others use the machine, too."""
CPU_BYTES_PER_S = 60e9
"""Memory bandwidth of all cores together, at most: four channels of DDR4."""


@dataclass(frozen=True, slots=True)
class Hardware:
    """Peak rates of a device."""

    name: str
    on_gpu: bool
    sms: int
    """Streaming multiprocessors; of a CPU, its cores."""
    sms_known: bool
    """False: the driver doesn't say, so their number is assumed."""
    flops: float
    """Floating-point operations a second, of matrix products."""
    bytes_per_s: float
    """Memory bandwidth."""

    def __str__(self) -> str:
        parts = f"{self.sms} SMs, {self.flops / 1e12:.0f}" if self.on_gpu else f"{self.flops / 1e12:.2f}"
        return f"roofline of {self.name} ({parts} TFLOP/s, {self.bytes_per_s / 1e9:.0f} GB/s)"


def hardware_of_gpu(gpu: Gpu, dtype: str) -> Hardware:
    """Returns the peak rates of a GPU for numbers of this format. What its driver doesn't say is assumed."""
    sms = gpu.sms or ASSUMED_SMS
    if dtype == "float32":  # plain CUDA cores: tensor cores would round
        per_clock = FMA * cores_per_sm(gpu.capability)
    else:
        per_clock = TENSOR_FLOPS.get(gpu.capability, OTHER_TENSOR_FLOPS)
    flops = sms * per_clock * (gpu.clock_hz or ASSUMED_CLOCK_HZ)
    bytes_per_s = gpu.memory_bytes_per_s or sms * ASSUMED_BYTES_PER_S_AND_SM
    return Hardware(gpu.name, True, sms, gpu.sms is not None, flops, bytes_per_s)


def hardware_of_cpu(cores: int, cpuinfo: Path = Path("/proc/cpuinfo")) -> Hardware:
    """Returns the peak rates of this number of cores, in 32 bits."""
    try:
        text = cpuinfo.read_text(encoding="utf-8")
    except OSError:
        text = ""
    clock = re.search(r"^cpu MHz\s*:\s*([\d.]+)", text, re.MULTILINE)
    clock_hz = float(clock.group(1)) * 1e6 if clock else CPU_CLOCK_HZ
    flags = re.search(r"^(?:flags|Features)\s*:\s*(.*)$", text, re.MULTILINE)
    per_clock = _simd_flops(flags.group(1).split() if flags else ())
    bytes_per_s = min(CPU_BYTES_PER_S, cores * CPU_BYTES_PER_S_AND_CORE)
    return Hardware(f"{cores} CPUs", False, cores, True, cores * clock_hz * per_clock, bytes_per_s)


def _simd_flops(flags: Sequence[str]) -> int:
    return next((flops for flag, flops in SIMD_FLOPS if flag in flags), OTHER_SIMD_FLOPS)
