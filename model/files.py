"""Folders written all or nothing, and file digests. Standard library only."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nopad.model.errors import NopadError


class OutputError(NopadError):
    """An output folder that must not be written: it holds something else, or another process is writing it."""


def check_output(output: Path, marker: str) -> None:
    """Refuse an `output` that stands already and is not of our making (it has no file `marker`).

    Raises `OutputError`; called again by `replace_folder`, and early by long commands.
    """
    if output.is_symlink() or (output.exists() and not output.is_dir()):
        raise OutputError(f"{output} is not a folder; name another output")
    if output.is_dir() and any(output.iterdir()) and not (output / marker).is_file():
        raise OutputError(f"{output} exists and has no {marker}, so it is left alone; name another output")


@contextmanager
def replace_folder(output: Path, *, marker: str) -> Iterator[Path]:
    """A new folder beside `output` to write into; renamed to `output` at the end, removed on any error.

    A folder that stands at `output` is replaced only in the last step, and only if it holds the file `marker`.
    Raises `OutputError`, also when another process is writing to the same output.
    """
    output = output.absolute()
    check_output(output, marker)
    output.parent.mkdir(parents=True, exist_ok=True)
    lock_path = output.parent / f".{output.name}.lock"
    with lock_path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(lock.fileno()).st_nlink == 0:  # its owner has just finished and removed it
                raise BlockingIOError
        except BlockingIOError:
            raise OutputError(f"another process is writing {output}; wait for it, or name another output") from None
        temporary = Path(tempfile.mkdtemp(prefix=f".{output.name}.", suffix=".partial", dir=output.parent))
        try:
            temporary.chmod(0o755)
            yield temporary
            check_output(output, marker)  # something may have come meanwhile
            if output.exists():
                old = Path(tempfile.mkdtemp(prefix=f".{output.name}.", suffix=".old", dir=output.parent))
                os.rename(output, old / "was")
                os.rename(temporary, output)
                shutil.rmtree(old, ignore_errors=True)
            else:
                os.rename(temporary, output)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
            lock_path.unlink(missing_ok=True)


def write_file(path: Path, data: bytes) -> None:
    """Write `path` through a temporary file beside it and a rename: readers see the old bytes or the new."""
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)
        os.replace(name, path)
    finally:
        Path(name).unlink(missing_ok=True)


def sha256_of(path: Path) -> str:
    """Hex SHA-256 of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
