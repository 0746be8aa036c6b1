"""Lets FlashInfer write what ninja needs for some kernels.

`flashinfer_build` starts it as a process of its own, because FlashInfer reads the environment once, when it is
imported. Each argument is `BACKEND:DTYPE:HEAD_DIM`. The answers are JSON objects on standard output, one a line, in the
same order: `{"name": ..., "ninja": ..., "library": ...}`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

from semipd.engine.flashinfer_kernels import Kernel


def argument(kernel: Kernel) -> str:
    return f"{kernel.backend}:{kernel.dtype}:{kernel.head_dim}"


def parse(text: str) -> Kernel:
    backend, dtype, head_dim = text.split(":")
    return Kernel("fa3" if backend == "fa3" else "fa2", dtype, int(head_dim))


def main(arguments: Sequence[str]) -> None:
    for text in arguments:
        spec = parse(text).spec()
        spec.write_ninja()
        answer = {"name": spec.name, "ninja": str(spec.ninja_path), "library": str(spec.jit_library_path)}
        sys.stdout.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
