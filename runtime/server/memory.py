"""Memory of this process and of its machine or container, in bytes. Linux; elsewhere nothing is known (None)."""

from __future__ import annotations

import ctypes
import gc
import os
from collections.abc import Iterator
from pathlib import Path

PROC, CGROUPS = Path("/proc"), Path("/sys/fs/cgroup")
UNLIMITED = 1 << 60  # cgroup v1 writes a number about this large where there is no limit


def resident(proc: Path = PROC) -> int | None:
    """Memory of this process."""
    try:
        return int((proc / "self/statm").read_text("ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return None


def available(most: int | None = None, *, proc: Path = PROC, cgroups: Path = CGROUPS) -> int | None:
    """Memory that this process may still take: of the machine, of each control group around it, and of `most`.

    `most`: bytes that the process may have in all.
    """
    found = [*_of_machine(proc), *_of_groups(proc, cgroups)]
    own = resident(proc)
    if most is not None and own is not None:
        found.append(most - own)
    return max(0, min(found)) if found else None


def give_back() -> None:
    """Return freed memory to the system; glibc would keep it for the next model."""
    gc.collect()
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (OSError, AttributeError, TypeError):  # another C library, another system
        return


def _of_machine(proc: Path) -> Iterator[int]:
    try:
        for line in (proc / "meminfo").read_text("ascii").splitlines():
            if line.startswith("MemAvailable:"):
                yield int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        return


def _of_groups(proc: Path, root: Path) -> Iterator[int]:
    """What each group leaves, from the process's own up to the root: version 2, then version 1 of control groups."""
    try:
        lines = (proc / "self/cgroup").read_text("ascii").splitlines()
    except (OSError, ValueError):
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        names = ("memory.max", "memory.current", "inactive_file")
        top = root
        if controllers:
            if "memory" not in controllers.split(","):
                continue
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            top = root / "memory"
        group = top / path.lstrip("/")
        for folder in (group, *group.parents):
            if not folder.is_relative_to(top):
                break
            yield from _of_group(folder, *names)


def _of_group(folder: Path, limit: str, usage: str, cache: str) -> Iterator[int]:
    try:
        most = int((folder / limit).read_text("ascii"))  # "max" is no number: no limit
        used = int((folder / usage).read_text("ascii"))
        if most >= UNLIMITED:
            return
        # Files that nobody reads are counted as used, but given up first.
        rows = [line.split() for line in (folder / "memory.stat").read_text("ascii").splitlines()]
        yield most - used + sum(int(row[1]) for row in rows if row[0] == cache)
    except (OSError, ValueError, IndexError):
        return
