"""Begins every child of the coordinator: it asks to die with its parent, and only then imports what it is.

Imports take seconds, and a child whose parent is killed meanwhile would be left behind.

usage: python -m semipd.wire.child MODULE [ARGUMENT ...]
"""

from __future__ import annotations

import runpy
import sys

from semipd.wire.process import die_with_parent, started_by


def main() -> None:
    die_with_parent(started_by())
    module = sys.argv.pop(1)
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
