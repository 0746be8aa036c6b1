"""An MPS client of nobody's that writes to an address that is not mapped: every client of that MPS server dies with it.

Run as a program, with CUDA_MPS_PIPE_DIRECTORY set. Nothing but the driver's own interface, so that nothing has to be
compiled or imported. Prints when it did, of time.monotonic(), and what the driver said. Exit code:
0 it trespassed, 1 the driver refused something before.
"""

from __future__ import annotations

import ctypes
import json
import sys
import time

PTX = b"""
.version 7.0
.target sm_80
.address_size 64
.visible .entry trespass()
{
    .reg .b32 %r<2>;
    .reg .b64 %rd<2>;
    mov.u64 %rd1, 16;
    mov.u32 %r1, 1;
    st.global.u32 [%rd1], %r1;
    ret;
}
"""
CAUGHT = (700, 719)
"""CUDA_ERROR_ILLEGAL_ADDRESS, CUDA_ERROR_LAUNCH_FAILED."""


def main() -> int:
    cuda = ctypes.CDLL("libcuda.so.1")
    context, module, kernel, device = ctypes.c_void_p(), ctypes.c_void_p(), ctypes.c_void_p(), ctypes.c_int()

    def must(name: str, *arguments: object) -> None:
        code = getattr(cuda, name)(*arguments)
        if code:
            sys.exit(f"{name}: error {code}")

    must("cuInit", 0)
    must("cuDeviceGet", ctypes.byref(device), 0)
    must("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
    must("cuCtxSetCurrent", context)
    must("cuModuleLoadData", ctypes.byref(module), ctypes.c_char_p(PTX))
    must("cuModuleGetFunction", ctypes.byref(kernel), module, b"trespass")
    at = time.monotonic()
    must("cuLaunchKernel", kernel, *(ctypes.c_uint(n) for n in (1, 1, 1, 32, 1, 1, 0)), None, None, None)
    code = cuda.cuCtxSynchronize()
    print(json.dumps({"at": at, "code": code}), flush=True)
    return 0 if code in CAUGHT else 1


if __name__ == "__main__":
    sys.exit(main())
