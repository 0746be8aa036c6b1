"""Profiles that `semipd profile` recorded on this machine, where the next start of a server finds them.

They lie in `$XDG_CACHE_HOME/semipd/profiles` (`~/.cache/semipd/profiles`), which only their owner may open. There is
one file for each GPU and model shape; a new recording replaces it.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

from semipd.core.errors import InputError
from semipd.profiles.profile import ModelShape, Profile, ProfiledGpu, read_profile


def cache_folder() -> Path:
    """Returns the folder, which need not exist. A relative XDG_CACHE_HOME is ignored, as its specification demands."""
    told = Path(os.environ.get("XDG_CACHE_HOME", ""))
    base = told if told.is_absolute() else Path(os.path.expanduser("~")) / ".cache"
    return base / "semipd" / "profiles"


def cache_file(gpu: ProfiledGpu, model: ModelShape) -> Path:
    """Returns the file for this GPU and model shape."""
    key = (gpu.name, f"{gpu.sms}sms", model.dtype, str(model.weight_bytes), str(model.kv_token_bytes))
    return cache_folder() / ("-".join(re.sub(r"[^a-z0-9]+", "-", part.lower()).strip("-") for part in key) + ".json")


def keep(profile: Profile) -> Path:
    """Puts a profile into the cache and returns its file. Raises InputError where that can't be written.

    Whoever reads the file meanwhile finds the former profile or this one, whole.
    """
    file = cache_file(profile.gpu, profile.model)
    if not file.is_absolute():
        raise InputError("there is no home directory to keep the profile in; set XDG_CACHE_HOME, or HOME")
    try:
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor, name = tempfile.mkstemp(dir=file.parent, prefix=".", suffix=".part")  # for its owner alone (0600)
    except OSError as error:
        raise InputError(f"{file.parent}: can't be written to: {error.strerror}") from error
    os.close(descriptor)
    draft = Path(name)
    try:
        profile.save(draft)
        draft.replace(file)
    finally:
        draft.unlink(missing_ok=True)
    return file


def kept() -> Iterator[tuple[Path, Profile | InputError]]:
    """Yields each file of the cache with its profile, or with why it can't be read."""
    try:
        files = sorted(cache_folder().glob("*.json"))
    except OSError:
        return
    for file in files:
        try:
            yield file, read_profile(file)
        except InputError as error:
            yield file, error
