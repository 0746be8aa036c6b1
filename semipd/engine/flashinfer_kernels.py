"""FlashInfer's compiled kernels: finds which a model needs and whether they are there, and loads them.

FlashInfer compiles a kernel when it is first used, which takes minutes. A server never does that: it uses what is in an
ahead-of-time set and its own Triton kernels for the rest. A kernel is a module, `SET/NAME/NAME.so`, in one of two sets:

1. the package `flashinfer-jit-cache`, or else `data/aot` inside FlashInfer's package, where FlashInfer itself looks;
2. semipd's set, filled by `semipd kernels build` (see `flashinfer_build`): one folder for each version of FlashInfer
   and architecture, under $SEMIPD_KERNELS or ~/.cache/semipd/kernels.

All functions but `Kernel.spec` and `load` work from names and files: they import neither torch nor FlashInfer, and use
no GPU.
"""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from semipd.core.errors import ConfigError, StartError
from semipd.core.model import ModelConfig

Capability = tuple[int, int]
Backend = Literal["fa3", "fa2"]

SHORT = {"bfloat16": "bf16", "float16": "f16"}
"""The types for which there are kernels, and how FlashInfer writes them."""
HEAD_DIMS = (64, 128, 256)
HOPPER = (9, 0)
OLDEST = (8, 0)
USUAL_HEAD_DIMS = (64, 128)
"""The head sizes of the checkpoints that most people serve."""

KERNELS_VARIABLE = "SEMIPD_KERNELS"
NOT_INSTALLED = "FlashInfer is not installed: pip install 'semipd[cuda]'"


class KernelError(StartError):
    """A kernel can't be built or loaded; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Kernel:
    """A kernel for prefill attention over a paged KV cache: causal, int32 page numbers, no window, no soft cap,
    rotation done before."""

    backend: Backend
    dtype: str
    """The type of queries, keys, values and output: "bfloat16" or "float16"."""
    head_dim: int

    @property
    def name(self) -> str:
        """FlashInfer's name of the module."""
        kind, dim = SHORT[self.dtype], self.head_dim
        return (
            f"batch_prefill_with_kv_cache_dtype_q_{kind}_dtype_kv_{kind}_dtype_o_{kind}_dtype_idx_i32_"
            f"head_dim_qk_{dim}_head_dim_vo_{dim}_posenc_0_use_swa_False_use_logits_cap_False_f16qk_False"
            + ("_sm90" if self.backend == "fa3" else "")
        )

    @property
    def why(self) -> str:
        generation = {"fa3": "FlashAttention 3", "fa2": "FlashAttention 2"}[self.backend]
        return f"prefill attention, {self.dtype}, head size {self.head_dim}, {generation}"

    def module_arguments(self) -> tuple[Any, ...]:
        """Returns the arguments of FlashInfer's `gen_batch_prefill_module` and `get_batch_prefill_module`. Imports
        torch."""
        torch = importlib.import_module("torch")
        kind = getattr(torch, self.dtype)
        return (self.backend, kind, kind, kind, torch.int32, self.head_dim, self.head_dim, 0, False, False, False)

    def spec(self) -> Any:
        """Returns FlashInfer's JitSpec. Imports FlashInfer and writes the kernel's sources into its cache."""
        return importlib.import_module("flashinfer.jit.attention").gen_batch_prefill_module(*self.module_arguments())


@dataclass(frozen=True, slots=True)
class KernelFile:
    """A compiled kernel, and the set that it is in."""

    path: Path
    origin: str
    """"flashinfer-jit-cache", "flashinfer" or "semipd"."""


def needed(model: ModelConfig, dtype: str, capability: Capability) -> list[Kernel]:
    """Returns the kernels of FlashInfer that serve the model best; empty: the engine's own kernels do it all.

    `dtype`: the type of weights and KV. A model with a sliding window in any layer uses none of FlashInfer's kernels.
    """
    if any(window is not None for window in model.windows):
        return []
    return kernels_for(dtype, [model.head_dim], capability)


def kernels_for(dtype: str, head_dims: Sequence[int], capability: Capability) -> list[Kernel]:
    if dtype not in SHORT or capability < OLDEST:
        return []
    backend: Backend = "fa3" if capability == HOPPER else "fa2"
    return [Kernel(backend, dtype, dim) for dim in head_dims if dim in HEAD_DIMS]


def usable_prefill_backend(model: ModelConfig, dtype: str, capability: Capability) -> Backend | None:
    """Returns the backend with which FlashInfer can compute the model's prefill attention at once; None: there is none.

    On sm_90 that is "fa3", or "fa2" where only its kernel is there. `load` the kernel before FlashInfer plans with it.
    """
    kernel = ready_kernel(model, dtype, capability)
    return kernel.backend if kernel else None


def ready_kernel(model: ModelConfig, dtype: str, capability: Capability) -> Kernel | None:
    """Returns the kernel for the model's prefill attention that is there; None: there is none."""
    for kernel in needed(model, dtype, capability):
        for candidate in (kernel, Kernel("fa2", kernel.dtype, kernel.head_dim)):
            if available(candidate, capability):
                return candidate
    return None


def available(kernel: Kernel, capability: Capability) -> bool:
    return find(kernel, capability) is not None


def find(kernel: Kernel, capability: Capability) -> KernelFile | None:
    """Returns the file that FlashInfer would load without compiling; None: there is none, or FlashInfer is not
    installed."""
    release = flashinfer_version()
    if release is None:
        return None
    package = _package_set()
    sets = ([package] if package else []) + [KernelFile(kernel_set(release, capability), "semipd")]
    for each in sets:
        path = each.path / kernel.name / f"{kernel.name}.so"
        if path.is_file():
            return KernelFile(path, each.origin)
    return None


def load(kernel: Kernel, capability: Capability) -> None:
    """Loads the compiled kernel into FlashInfer, whose wrappers then find it.

    From here on FlashInfer compiles nothing in this process. The process that computes calls this once for each kernel,
    before a wrapper's `plan`.

    Raises KernelError where it isn't there or can't be loaded (built for another CUDA, or a damaged file).
    """
    found = find(kernel, capability)
    if found is None:
        raise KernelError(f"no {kernel.why}: run `semipd kernels build`")
    os.environ["FLASHINFER_DISABLE_JIT"] = "1"
    environment: Any = importlib.import_module("flashinfer.jit.env")
    prefill: Any = importlib.import_module("flashinfer.prefill")
    usual = environment.FLASHINFER_AOT_DIR
    # FlashInfer knows one set at a time, and keeps a loaded kernel until the process ends.
    environment.FLASHINFER_AOT_DIR = found.path.parent.parent
    try:
        prefill.get_batch_prefill_module(*kernel.module_arguments())
    except Exception as error:
        raise KernelError(f"{found.path} can't be loaded ({error}): run `semipd kernels build --again`") from error
    finally:
        environment.FLASHINFER_AOT_DIR = usual


def flashinfer_version() -> str | None:
    """Returns the version of FlashInfer; None: it is not installed."""
    try:
        return version("flashinfer-python")
    except PackageNotFoundError:
        return None


def kernel_set(release: str, capability: Capability) -> Path:
    """Returns the folder of semipd's set for a release of FlashInfer."""
    root = os.environ.get(KERNELS_VARIABLE)
    folder = Path(root) if root else Path.home() / ".cache" / "semipd" / "kernels"
    return folder / f"flashinfer-{release}" / f"sm_{architecture(capability).replace('.', '')}"


def architecture(capability: Capability) -> str:
    """Returns the architecture in the form of nvcc and FLASHINFER_CUDA_ARCH_LIST, like "9.0a".

    The "a" says that kernels of Hopper and later are for one chip only.
    """
    major, minor = capability
    return f"{major}.{minor}" + ("a" if major >= HOPPER[0] else "")


def parse_architecture(text: str) -> Capability:
    """Reads an architecture like "9.0", "9.0a", "90a" or "sm_90a". Raises ConfigError."""
    match = re.fullmatch(r"(?:sm_?)?(\d{1,2})\.?(\d)[af]?", text.strip().lower())
    if match is None:
        raise ConfigError(f"--arch: must be like 9.0a or 8.6; got {text!r}")
    return int(match.group(1)), int(match.group(2))


def _package_set() -> KernelFile | None:
    for package, inside in (("flashinfer_jit_cache", "jit_cache"), ("flashinfer", "data/aot")):
        spec = find_spec(package)
        for folder in spec.submodule_search_locations or () if spec else ():
            return KernelFile(Path(folder) / inside, package.replace("_", "-"))
    return None
