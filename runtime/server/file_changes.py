"""Noticing that a file was changed: a look at its time, size and inode, at most once a second."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

SECONDS = 1.0  # between looks


class FileChanges:
    """Files that may be replaced while the server runs. Symbolic links are followed, as secrets are mounted by them."""

    def __init__(self, *paths: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._paths, self._clock = paths, clock
        self._looked, self._stamps = clock(), self._look()

    def seen(self) -> bool:
        """Whether a file is another one than at the last look; False if that was less than a second ago."""
        now = self._clock()
        if not self._paths or now - self._looked < SECONDS:
            return False
        self._looked, before = now, self._stamps
        self._stamps = self._look()
        return self._stamps != before

    def _look(self) -> list[tuple[int, int, int] | None]:
        return [_stamp(path) for path in self._paths]


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
