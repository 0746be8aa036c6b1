"""Checks two rules of CONTRIBUTING.md that no other tool knows: `python scripts/conventions.py`.

* A hand-written Python file has at most 400 lines.
* No two classes of the server have the same name. (Private ones, with an underscore, may.)

It prints each place and exits with 1 if there is one.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

MOST_LINES = 400
GENERATED = ("_pb2.py", "_pb2.pyi", "_pb2_grpc.py")
SERVER = "semipd/"


def hand_written() -> list[Path]:
    """Returns the Python files of the repository that nobody generates."""
    listed = subprocess.run(["git", "ls-files", "*.py", "*.pyi"], capture_output=True, text=True, check=True).stdout
    return [Path(name) for name in listed.split() if not name.endswith(GENERATED)]


def too_long(path: Path, text: str) -> Iterator[str]:
    """Yields a complaint if the file has too many lines."""
    lines = text.count("\n")
    if lines > MOST_LINES:
        yield f"{path}: {lines} lines; at most {MOST_LINES}"


def namesakes(places: dict[str, list[Path]]) -> Iterator[str]:
    """Yields a complaint for each name that several classes have."""
    for name, paths in sorted(places.items()):
        if len(paths) > 1 and not name.startswith("_"):
            yield f"class {name} is in {', '.join(map(str, paths))}"


def main() -> int:
    """Returns the exit code."""
    complaints: list[str] = []
    places: dict[str, list[Path]] = defaultdict(list)
    for path in hand_written():
        text = path.read_text()
        complaints += too_long(path, text)
        if str(path).startswith(SERVER):
            for node in ast.walk(ast.parse(text)):
                if isinstance(node, ast.ClassDef):
                    places[node.name].append(path)
    complaints += namesakes(places)
    print("\n".join(complaints), end="\n" if complaints else "")
    return 1 if complaints else 0


if __name__ == "__main__":
    sys.exit(main())
