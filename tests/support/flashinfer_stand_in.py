"""A package that looks like FlashInfer where semipd looks, with a `ninja` and an `nvcc` of a few lines."""

from __future__ import annotations

from pathlib import Path

ATTENTION = """
from pathlib import Path
from flashinfer.jit.env import WORKSPACE

class Spec:
    def __init__(self, name):
        self.name = name
        self.ninja_path = WORKSPACE / name / "build.ninja"
        self.jit_library_path = WORKSPACE / name / f"{name}.so"

    def write_ninja(self):
        self.ninja_path.parent.mkdir(parents=True, exist_ok=True)
        self.ninja_path.write_text(self.name)

def gen_batch_prefill_module(backend, q, kv, o, index, dim_qk, dim_vo, posenc, swa, cap, f16qk):
    kind = {"torch.bfloat16": "bf16", "torch.float16": "f16"}[str(q)]
    return Spec(
        f"batch_prefill_with_kv_cache_dtype_q_{kind}_dtype_kv_{kind}_dtype_o_{kind}_dtype_idx_i32_head_dim_qk_{dim_qk}_"
        f"head_dim_vo_{dim_vo}_posenc_{posenc}_use_swa_{swa}_use_logits_cap_{cap}_f16qk_{f16qk}"
        + ("_sm90" if backend == "fa3" else "")
    )
"""
ENV = """
import os
from pathlib import Path

FLASHINFER_AOT_DIR = Path(__file__).parent.parent / "data" / "aot"
WORKSPACE = Path(os.environ["FLASHINFER_WORKSPACE_BASE"]) / os.environ.get("FLASHINFER_CUDA_ARCH_LIST", "none")
"""
PREFILL = """
import functools
import os
from flashinfer.jit import env
from flashinfer.jit.attention import gen_batch_prefill_module

@functools.cache
def get_batch_prefill_module(*arguments):
    name = gen_batch_prefill_module(*arguments).name
    text = (env.FLASHINFER_AOT_DIR / name / f"{name}.so").read_text()
    if text != "compiled":
        raise OSError(f"invalid ELF header, and compiling is off: {os.environ['FLASHINFER_DISABLE_JIT']}")
    return text
"""
METADATA = "Metadata-Version: 2.1\nName: flashinfer-python\nVersion: 0.6.18\n"
NINJA = """#!/bin/sh
while [ "$1" != "-f" ]; do shift; done
name=$(cat "$2")
echo "[1/2] nvcc kernel.cu"
if [ -n "$BROKEN_KERNEL" ]; then
  echo "FAILED: [code=1] kernel.o"
  echo "kernel.cu(7): error: no such template"
  echo "ninja: build stopped: subcommand failed."
  exit 1
fi
echo "[2/2] c++ -shared"
printf compiled > "$(dirname "$2")/$name.so"
"""


def install(site: Path) -> None:
    """Writes the package into a folder of packages."""
    for name, text in {
        "flashinfer/__init__.py": "",
        "flashinfer/jit/__init__.py": "",
        "flashinfer/jit/env.py": ENV,
        "flashinfer/jit/attention.py": ATTENTION,
        "flashinfer/prefill.py": PREFILL,
        "flashinfer_python-0.6.18.dist-info/METADATA": METADATA,
    }.items():
        path = site / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def install_tools(folder: Path) -> None:
    """Writes the programs into a folder for PATH."""
    for name, text in {"ninja": NINJA, "nvcc": "#!/bin/sh\n", "c++": "#!/bin/sh\n"}.items():
        path = folder / name
        path.write_text(text)
        path.chmod(0o755)
