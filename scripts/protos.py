"""Generates the Python stubs from proto/ with grpcio-tools: into semipd/ for the server, into the client's package.

usage: python scripts/protos.py [--check]      --check: change nothing, exit 1 if a stub is not current
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import grpc_tools
from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent
PROTO = ROOT / "proto"
PUBLIC = sorted(PROTO.glob("semipd/v1/*.proto"))
INTERNAL = sorted(PROTO.glob("semipd/internal/v1/*.proto"))
CLIENT_ONLY = sorted(PROTO.glob("semipd/client/v1/*.proto"))
CLIENT = ROOT / "clients/python/semipd_client/_proto"


def generate(protos: list[Path], out: Path, services: bool) -> None:
    well_known = Path(grpc_tools.__file__).parent / "_proto"
    args = ["protoc", f"-I{PROTO}", f"-I{well_known}", f"--python_out={out}", f"--pyi_out={out}"]
    if services:
        args.append(f"--grpc_python_out={out}")
    if protoc.main([*args, *map(str, protos)]) != 0:
        raise SystemExit("protoc failed")


def packages(out: Path, docs: dict[str, str]) -> None:
    for folder, doc in docs.items():
        (out / folder / "__init__.py").write_text(f'"""{doc}"""\n')


def build(out: Path) -> dict[Path, bytes]:
    """Every generated file: its place in the repository -> its bytes."""
    server, client = out / "server", out / "client"
    server.mkdir()
    client.mkdir()
    generate(PUBLIC, server, services=True)
    generate(INTERNAL, server, services=False)
    packages(
        server,
        {
            "semipd/v1": "Generated from proto/semipd/v1: the public API.",
            "semipd/internal": "The wire between a server's own processes.",
            "semipd/internal/v1": "Generated from proto/semipd/internal/v1.",
        },
    )
    generate(PUBLIC, client, services=True)
    generate(CLIENT_ONLY, client, services=False)
    packages(
        client,
        {
            ".": "Generated stubs of the public API.",
            "semipd": "Generated.",
            "semipd/v1": "Generated from proto/semipd/v1.",
            "semipd/client": "Messages of standard APIs, under names of our own.",
            "semipd/client/v1": "Generated from proto/semipd/client/v1.",
        },
    )
    files = {ROOT / p.relative_to(server): p.read_bytes() for p in server.rglob("*") if p.is_file()}
    for p in client.rglob("*"):
        if p.is_file():
            # The client may live beside the server in one environment, whose package is `semipd`.
            text = p.read_text().replace("from semipd.v1 import", "from semipd_client._proto.semipd.v1 import")
            files[CLIENT / p.relative_to(client)] = text.encode()
    return files


def main() -> int:
    with tempfile.TemporaryDirectory() as tmp:
        files = build(Path(tmp))
    stale = [p for p, data in files.items() if not p.exists() or p.read_bytes() != data]
    if "--check" in sys.argv:
        for p in stale:
            print(f"not current: {p.relative_to(ROOT)} (run `make protos`)")
        return 1 if stale else 0
    for p in stale:
        p.parent.mkdir(parents=True, exist_ok=True)
        p.write_bytes(files[p])
        print(f"wrote {p.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
