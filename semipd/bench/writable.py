"""Checks that results can be written, before hours are spent on getting them."""

from __future__ import annotations

import os
from pathlib import Path

from semipd.bench.errors import InputError


def ready_to_write(json_file: Path | None, plots: Path | None) -> None:
    """Makes the file's folder and the folder for pictures. Raises InputError where they couldn't be written to."""
    for folder in (None if json_file is None else json_file.parent, plots):
        if folder is None:
            continue
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{folder}: can't be made: {error.strerror}") from error
        if not os.access(folder, os.W_OK):
            raise InputError(f"{folder}: can't be written to")
    if json_file is not None and json_file.is_dir():
        raise InputError(f"{json_file}: can't be written: it is a folder")
