"""Digests of what is on the disk: of a file its SHA-256, of a folder that of its files' names and digests."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from nopad.runtime.atomic import sha256_of


def digest_of(path: Path) -> str | None:
    """The digest of a file or folder; None where there is none. Modes, times and empty folders count for nothing.

    Links are followed, as those who read the files do.
    """
    if path.is_file():
        return sha256_of(path)
    if not path.is_dir():
        return None
    files = {file.relative_to(path).as_posix(): sha256_of(file) for file in _files(path, ()) if file.is_file()}
    lines = (f"{digest} {name}\n" for name, digest in sorted(files.items()))
    return hashlib.sha256("".join(lines).encode("utf-8", "surrogateescape")).hexdigest()


def _files(folder: Path, above: tuple[str, ...]) -> Iterator[Path]:
    """Everything below a folder that is none. A link to a folder that it lies in is not followed for ever."""
    real = os.path.realpath(folder)
    if real in above:
        return
    for path in folder.iterdir():
        if path.is_dir():
            yield from _files(path, (*above, real))
        else:
            yield path
