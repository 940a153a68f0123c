"""Digests of what is on the disk: of a file its SHA-256, of a folder that of its files' names and digests."""

from __future__ import annotations

import hashlib
from pathlib import Path

from nopad.runtime.atomic import sha256_of


def digest_of(path: Path) -> str | None:
    """The digest of a file or folder; None where there is none. Modes, times and empty folders count for nothing."""
    if path.is_file():
        return sha256_of(path)
    if not path.is_dir():
        return None
    files = {file.relative_to(path).as_posix(): sha256_of(file) for file in path.rglob("*") if file.is_file()}
    lines = (f"{digest} {name}\n" for name, digest in sorted(files.items()))
    return hashlib.sha256("".join(lines).encode("utf-8", "surrogateescape")).hexdigest()
