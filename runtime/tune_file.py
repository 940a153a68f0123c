"""`tuning.json`: what `nopad tune` found to be fastest, machine by machine; `load` follows the entry of its own.

It lies in the bundle folder, beside the manifest, which does not list it; in the user's cache where that folder cannot
be written. An entry holds for one CPU, number of cores and GPU, for the bundle's manifest as it was, and for the
versions of nopad and of the engine's library. Measures nothing.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nopad.model.cpus import cpu_at_hand, usable_cores
from nopad.model.packages import PACKAGES, version_of
from nopad.runtime.atomic import sha256_of, write_file
from nopad.runtime.bundle import DEFAULT_BUNDLE, MANIFEST, TUNING, Bundle
from nopad.runtime.engines.base import ENGINES, GPU_TARGETS
from nopad.runtime.engines.compiled_cache import cache_folder
from nopad.runtime.errors import OutputError

FORMAT_VERSION = 1
log = logging.getLogger("nopad")


@dataclass(frozen=True, kw_only=True)
class Tuned:
    """The fastest setting that was measured on one machine."""

    machine: str  # `machine_key`
    cpu: str  # in words
    cores: int
    manifest: str  # SHA-256 of the bundle's manifest.json
    versions: str  # of nopad and of the engine's library
    engine: str
    file: str
    precision: str
    token_budget: int  # tokens of a micro-batch
    threads: int | None  # on the CPU; None: the engine has none
    asked: str | None  # the precisions that were tried, as the user named them; None: what `load` takes unasked
    tokens_per_second: float  # the median of its turns
    date: str


def machine_key(bundle: Bundle, sm: Callable[[], str | None]) -> str:
    """What an entry is kept by: the CPU and its cores, and the GPU if the bundle has a file for GPUs."""
    gpu = sm() if any(artifact.target in GPU_TARGETS for artifact in bundle.manifest.artifacts) else None
    return f"{cpu_at_hand().key}-{usable_cores()}" + (f"-{gpu}" if gpu else "")


def versions_of(engine: str) -> str:
    """The versions of nopad and of the packages that an engine imports."""
    names = ("nopad", *(PACKAGES[module].name for module in ENGINES[engine].need.modules if module in PACKAGES))
    return ", ".join(f"{name} {version_of(name)}" for name in names)


def tuned_here(
    bundle: Bundle, sm: Callable[[], str | None], *, engine: object, precision: str | None, file: str | None
) -> Tuned | None:
    """The entry of this machine, if it is an answer to these arguments of `load`; else None.

    An entry of another machine or version is ignored, which is said once. `sm` as in `find_candidates`.
    """
    entries = read_entries(bundle) if isinstance(engine, str) else ()
    if not entries:
        return None
    key = machine_key(bundle, sm)
    entry = next((entry for entry in entries if entry.machine == key), None)
    if entry is None:
        cpus = ", ".join(sorted({f"{entry.cpu} with {entry.cores} cores" for entry in entries}))
        _ignore(f"{bundle.path} was tuned for another machine ({cpus})")
    elif entry.manifest != sha256_of(bundle.path / MANIFEST):
        _ignore(f"{bundle.path} has changed since it was tuned")
    elif entry.versions != versions_of(entry.engine):
        _ignore(f"{bundle.path} was tuned with {entry.versions}, and here is {versions_of(entry.engine)}")
    elif (
        engine in ("auto", entry.engine)
        and precision in (None, entry.precision, entry.asked)
        and file in (None, entry.file)
    ):
        return entry
    return None


def read_entries(bundle: Bundle) -> tuple[Tuned, ...]:
    """Every entry for this bundle, those in its folder first. A damaged file is as none, which is said once."""
    folders = [bundle.path] if not _embedded(bundle) else []
    cached = _cached(bundle, create=False)
    entries: list[Tuned] = []
    for folder in [*folders, *([cached] if cached else [])]:
        entries += _read(folder / TUNING)
    return tuple(entries)


def write_entry(bundle: Bundle, entry: Tuned) -> Path:
    """Record an entry in place of the machine's former one; returns the file. Raises `OutputError`."""
    if not _embedded(bundle) and os.access(bundle.path, os.W_OK):
        folder: Path | None = bundle.path
    else:
        folder = _cached(bundle, create=True)
    if folder is None:
        raise OutputError(f"neither {bundle.path} nor the cache folder can be written, so nothing was recorded")
    others = [other for other in _read(folder / TUNING) if other.machine != entry.machine]
    content = {"format_version": FORMAT_VERSION, "entries": [dataclasses.asdict(one) for one in (*others, entry)]}
    try:
        write_file(folder / TUNING, (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())
    except OSError as error:
        raise OutputError(f"cannot write {folder / TUNING}: {error.strerror}") from None
    return folder / TUNING


def _embedded(bundle: Bundle) -> bool:
    """Whether the bundle is part of the installed package, which is never written to."""
    return bundle.path.resolve() == DEFAULT_BUNDLE.resolve()


def _cached(bundle: Bundle, *, create: bool) -> Path | None:
    return cache_folder(bundle.path / MANIFEST, "tuning", create=create)


def _read(path: Path) -> list[Tuned]:
    try:
        raw = json.loads(path.read_bytes())
        if raw["format_version"] != FORMAT_VERSION:
            raise ValueError(f"format version {raw['format_version']}, this nopad reads {FORMAT_VERSION}")
        return [_parse(entry) for entry in raw["entries"]]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        _ignore(f"{path} cannot be read ({type(error).__name__}: {error})")
        return []


def _parse(raw: Any) -> Tuned:
    entry = Tuned(**raw)
    if entry.engine not in ENGINES:
        raise ValueError(f"unknown engine {entry.engine!r}")
    numbers = [entry.token_budget, *([] if entry.threads is None else [entry.threads])]
    if not all(isinstance(number, int) and number > 0 for number in numbers):
        raise ValueError(f"token_budget {entry.token_budget!r}, threads {entry.threads!r}")
    return entry


@functools.cache
def _ignore(reason: str) -> None:
    """Say once in a process why an entry is not followed."""
    log.warning("%s: its tuning is ignored; nopad tune measures anew", reason)
