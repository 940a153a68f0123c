"""Folders written all or nothing, and file digests."""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from nopad.runtime.errors import OutputError


def check_output(output: Path, marker: str, known: Collection[str] | None = None) -> None:
    """Refuse an `output` that exists and was not written by us.

    It must hold the file `marker` and, unless `known` is None, no file that is not in `known`: no foreign file is lost.
    Raises `OutputError`; called again by `replace_folder`, and early by long commands.
    """
    if output.is_symlink() or (output.exists() and not output.is_dir()):
        raise OutputError(f"{output} is not a folder; name another output")
    if not output.is_dir():
        return
    entries = sorted(output.iterdir())
    if entries and not (output / marker).is_file():
        raise OutputError(f"{output} exists and has no {marker}, so it is left alone; name another output")
    foreign = [] if known is None else _foreign(output, known)
    if foreign:
        names = ", ".join(foreign[:3]) + (", ..." if len(foreign) > 3 else "")
        raise OutputError(
            f"{output} holds files that nopad does not replace ({names}); move them away, or name another output"
        )


def _foreign(output: Path, known: Collection[str]) -> list[str]:
    """What is in a folder, and in the folders in it, beside the `known` files, whose names may have folders."""
    folders = {parent.as_posix() for name in known for parent in PurePosixPath(name).parents}
    names = {path.relative_to(output).as_posix(): path for path in sorted(output.rglob("*"))}
    return [
        name
        for name, path in names.items()
        if not (name in known and path.is_file()) and not (name in folders and path.is_dir())
    ]


@contextmanager
def locked(path: Path, doing: str) -> Iterator[int]:
    """Keep other processes from working on `path` at the same time; `doing` says in their error what this one does.

    Yields the lock's descriptor: a process that inherits it holds the lock as well. Creates the parent folder. Raises
    `OutputError` at once if another process holds the lock.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock_path = path.parent / f".{path.name}.lock"
    with lock_path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(lock.fileno()).st_nlink == 0:  # its owner has just finished and removed it
                raise BlockingIOError
        except BlockingIOError:
            raise OutputError(f"another process is {doing}; wait for it, or name another output") from None
        try:
            yield lock.fileno()
        finally:
            lock_path.unlink(missing_ok=True)


@contextmanager
def replace_folder(output: Path, *, marker: str, known: Collection[str] | None = None) -> Iterator[Path]:
    """Yield a new folder beside `output` to write into; renamed to `output` at the end, removed on any error.

    An existing `output` is replaced only in the last step, and only if `check_output` allows it.
    Raises `OutputError`, also when another process is writing to the same output.
    """
    output = output.absolute()
    check_output(output, marker, known)
    with locked(output, f"writing {output}"):
        leftover = re.compile(re.escape(f".{output.name}.") + r"[a-z0-9_]{8}\.partial")
        for path in output.parent.iterdir():  # left by a process that was killed; we hold the lock
            if leftover.fullmatch(path.name):
                shutil.rmtree(path, ignore_errors=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{output.name}.", suffix=".partial", dir=output.parent))
        try:
            temporary.chmod(0o755)
            yield temporary
            check_output(output, marker, known)  # something may have appeared meanwhile
            if output.exists():
                old = Path(tempfile.mkdtemp(prefix=f".{output.name}.", suffix=".old", dir=output.parent))
                os.rename(output, old / "was")
                os.rename(temporary, output)
                shutil.rmtree(old, ignore_errors=True)
            else:
                os.rename(temporary, output)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def write_file(path: Path, data: bytes) -> None:
    """Write `path` through a temporary file beside it and a rename: readers see either the old or the new bytes."""
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
    """Hex SHA-256 of a file, read in chunks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
