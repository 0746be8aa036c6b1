"""Compiled attention kernels, and what makes them."""

from __future__ import annotations

from dataclasses import dataclass

from semipd.cli.checkup.finding import Finding, State
from semipd.cli.checkup.nvidia import WITHOUT_GPU, Nvidia
from semipd.engine.flashinfer_build import find_nvcc
from semipd.engine.flashinfer_kernels import USUAL_HEAD_DIMS, available, kernels_for

DTYPE = "bfloat16"
BUILD = "semipd kernels build"


@dataclass(frozen=True, slots=True)
class Kernels:
    head_dims: tuple[int, ...] = ()
    """The usual head dimensions that have a compiled kernel for the first GPU, in bfloat16."""
    nvcc: str | None = None


NONE = Kernels()


def survey_kernels(gpus: Nvidia) -> Kernels:
    nvcc = find_nvcc()
    capability = gpus.gpus[0].capability if gpus.gpus else (0, 0)
    there = [k.head_dim for k in kernels_for(DTYPE, USUAL_HEAD_DIMS, capability) if available(k, capability)]
    return Kernels(tuple(there), str(nvcc) if nvcc else None)


def check_kernels(seen: Kernels, gpus: Nvidia, flashinfer: str | None) -> Finding:
    name = "prefill kernels"
    if not gpus.gpus:
        return Finding(name, State.NEEDLESS, "none", WITHOUT_GPU)
    if seen.head_dims:
        sizes = " and ".join(map(str, seen.head_dims))
        return Finding(
            name, State.GOOD, f"FlashInfer's, {DTYPE}, head size {sizes}", f"for another model: {BUILD} --model DIR"
        )
    slower = "prompts are computed by semipd's own kernels, which are slower"
    remedy = f"run {BUILD}" if flashinfer else "install FlashInfer"
    return Finding(name, State.LESS, "none of FlashInfer's", f"{slower}: {remedy}")


def check_nvcc(seen: Kernels, gpus: Nvidia) -> Finding:
    if seen.nvcc:
        return Finding("nvcc", State.GOOD if gpus.gpus else State.NEEDLESS, seen.nvcc, f"only {BUILD} needs it")
    return Finding("nvcc", State.NEEDLESS, "none", f"only {BUILD} needs it")
