"""Lets FlashInfer write what ninja needs for some kernels. A process of its own, started by `flashinfer_build`: what
FlashInfer takes from the environment it takes once, when it is imported.

Arguments: `BACKEND:DTYPE:HEAD_DIM` each. Answers one JSON object a line on standard output, in the same order:
`{"name": ..., "ninja": ..., "library": ...}`.
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
