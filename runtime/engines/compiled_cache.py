"""Where engines keep what they compiled on this machine: the user's cache folder. A bundle is never written to."""

from __future__ import annotations

import hashlib
from pathlib import Path

from nopad.runtime.atomic import sha256_of


def cache_folder(path: Path, *key: str) -> Path | None:
    """A folder for what an engine compiled from the file `path`, made if need be; None where it cannot be.

    Another for every content of the file (and of the weights that may stand beside it as `path.data`) and every `key`
    (library versions, options): nothing compiled from another file, or by another library, is ever found in it.
    """
    files = sorted(file for file in path.parent.glob(f"{path.name}*") if file.is_file())
    digest = hashlib.sha256("\n".join([*map(sha256_of, files), *key]).encode()).hexdigest()
    try:
        folder = Path.home() / ".cache" / "nopad" / digest[:32]
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # RuntimeError: no home folder
        return None
    return folder
