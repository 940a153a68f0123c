"""API keys: given, or read from a file and read again when it changes; compared in constant time."""

from __future__ import annotations

import hashlib
import hmac
import logging
from collections.abc import Sequence
from pathlib import Path

from nopad.runtime.errors import UsageError
from nopad.runtime.server.file_changes import FileChanges

log = logging.getLogger("nopad.server")


def read_keys(path: Path) -> tuple[str, ...]:
    """The keys of a file, one a line; blank lines and those that begin with # are skipped. Raises `UsageError`."""
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8"
        raise UsageError(f"cannot read the API keys in {path}: {reason}") from None
    keys = tuple(line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#"))
    if not keys:
        raise UsageError(f"{path} holds no API key; write one a line")
    return keys


class Keys:
    """Who may ask. Without keys and file, everybody.

    A `file` that has changed is read again, at most once a second; while it is missing or broken, its old keys hold and
    the log says so. Raises `UsageError` where it cannot be read at first.
    """

    def __init__(self, keys: Sequence[str], file: Path | None = None) -> None:
        self._given = [_digest(key.encode()) for key in keys]
        self._file = file
        self._changes = FileChanges(*([file] if file else []))
        self._read: list[bytes] = []
        if file is not None:
            self._read = [_digest(key.encode()) for key in read_keys(file)]

    def allow(self, authorization: bytes | None) -> bool:
        """Whether the value of an `Authorization` header carries one of the keys: `Bearer KEY`."""
        if self._changes.seen():
            self._read_again()
        if not self._given and not self._read:
            return True
        scheme, _, key = (authorization or b"").partition(b" ")
        given = _digest(key.strip())
        # Every key is compared, and digests have one length, so the time tells nothing about any of them.
        found = False
        for digest in (*self._given, *self._read):
            found |= hmac.compare_digest(digest, given)
        return found and scheme.lower() == b"bearer"

    def _read_again(self) -> None:
        assert self._file is not None
        try:
            self._read = [_digest(key.encode()) for key in read_keys(self._file)]
        except UsageError as error:
            log.warning("%s; the keys that were there before are still good", error)
        else:
            log.warning("read %d API keys from %s, which had changed", len(self._read), self._file)


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
