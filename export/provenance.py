"""Where a bundle comes from: digests of its checkpoint, versions of what made it."""

from __future__ import annotations

import datetime
import importlib.metadata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nopad.model.adapter import SETTINGS_FILE
from nopad.model.files import sha256_of
from nopad.model.source import Source
from nopad.runtime.bundle import Bundle

_PACKAGES = ("nopad", "torch", "transformers", "onnx", "onnxscript", "onnxruntime", "tokenizers", "optimum-onnx")


def source_of(source: Source) -> dict[str, Any]:
    """Where a bundle comes from: the folder's name and the digest of each weight file and of config.json.

    Of a LoRA adapter its own files, and those of its base under `base`.
    """
    if source.base is None or source.adapter is None:
        return _digests(source.folder, source.weights)
    beside = [source.folder / name for name in (SETTINGS_FILE, "config.json")]
    own = _digests(source.folder, [source.adapter.file, *(path for path in beside if path.is_file())], config=False)
    return {**own, "base": _digests(source.base, source.weights)}


def _digests(folder: Path, files: Sequence[Path], *, config: bool = True) -> dict[str, Any]:
    every = [*files, folder / "config.json"] if config else files
    return {"name": folder.resolve().name, "sha256": {file.name: sha256_of(file) for file in every}}


def created() -> dict[str, Any]:
    """Versions of everything that had a hand in the bundle, and the time (UTC)."""
    versions: dict[str, Any] = {}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {**versions, "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")}


def is_source(bundle: Bundle, source: Source) -> bool:
    """Whether `source` has the files that the bundle was exported from."""
    known = bundle.manifest.source
    if not known.get("sha256"):
        return True
    found = source_of(source)
    base, theirs = known.get("base") or {}, found.get("base") or {}
    return bool(known["sha256"] == found["sha256"] and base.get("sha256") == theirs.get("sha256"))
