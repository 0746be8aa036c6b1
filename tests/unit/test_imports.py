"""An interpreter has imported no more than a part may import (lint-imports holds the same in the source)."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    "module",
    ["semipd", "semipd.gateway.server", "semipd.coordinator.server", "semipd.policies.registry", "semipd.cli.main"],
)
def test_torch_is_not_imported_by(module: str) -> None:
    program = f"import sys, {module}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_the_client_needs_nothing_but_grpc_and_protobuf() -> None:
    program = (
        "import sys, semipd_client; "
        "print([m for m in ('torch', 'semipd', 'zmq', 'google.rpc', 'grpc_status') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
