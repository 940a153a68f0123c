"""The user's cache folder, where engines keep what they compile on this machine. They never write to a bundle."""

from __future__ import annotations

import hashlib
from pathlib import Path

from nopad.runtime.atomic import sha256_of


def cache_folder(path: Path, *key: str, base: Path | None = None, create: bool = True) -> Path | None:
    """The folder for what is made from the file `path`, created if need be; None if it cannot be, or is not there.

    It depends on the content of the file (and of weights beside it, `path.data`) and on each `key` (library versions,
    options), so that it never holds what was compiled from another file or by another library. `base`: the folder
    that it is made in; None: `~/.cache/nopad`.
    """
    files = sorted(file for file in path.parent.glob(f"{path.name}*") if file.is_file())
    digest = hashlib.sha256("\n".join([*map(sha256_of, files), *key]).encode()).hexdigest()
    try:
        folder = (base or Path.home() / ".cache" / "nopad") / digest[:32]
        if create:
            folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # RuntimeError: no home folder
        return None
    return folder if folder.is_dir() else None
