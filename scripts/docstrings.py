"""Finds docstrings that begin in the middle of a sentence: `python scripts/docstrings.py [PATH ...]`.

The first sentence of a docstring says what the thing does or is (CONTRIBUTING.md). A first word such as "Of" or "With"
shows that its subject or its verb is missing. Prints each place and exits with 1 where there is one.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

DANGLING = frozenset(
    [
        "after",
        "and",
        "as",
        "at",
        "before",
        "behind",
        "beside",
        "between",
        "beyond",
        "but",
        "by",
        "for",
        "from",
        "has",
        "how",
        "if",
        "in",
        "into",
        "is",
        "not",
        "nothing",
        "of",
        "on",
        "once",
        "or",
        "over",
        "since",
        "so",
        "such",
        "than",
        "that",
        "then",
        "through",
        "till",
        "to",
        "under",
        "until",
        "what",
        "when",
        "where",
        "whether",
        "which",
        "while",
        "who",
        "whoever",
        "whom",
        "whose",
        "with",
        "within",
        "without",
    ]
)
"""First words, in small letters, of a sentence without a subject."""


def strings(path: Path) -> Iterator[tuple[int, str]]:
    """Yields line and text of every string that stands as a statement: docstrings, also those of fields."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            yield node.lineno, node.value.value.strip()


def dangling(text: str) -> bool:
    """Returns whether the text begins with a word that can't begin a plain sentence."""
    first = text.split(maxsplit=1)[0] if text else ""
    return first.strip(",:;.").lower() in DANGLING


def main(paths: list[str]) -> int:
    tracked = subprocess.run(["git", "ls-files", "*.py"], capture_output=True, text=True, check=True).stdout.split()
    found = 0
    for name in paths or [name for name in tracked if "_pb2" not in name]:
        for line, text in strings(Path(name)):
            if dangling(text):
                found += 1
                print(f"{name}:{line}: begins in the middle of a sentence: {text.splitlines()[0][:80]}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
