"""Where a bundle comes from: digests of its checkpoint, versions of the packages that made it."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nopad.model.checkpoint import setfit
from nopad.model.checkpoint.adapter import SETTINGS_FILE
from nopad.model.checkpoint.sentence_transformers import module_files
from nopad.model.checkpoint.source import Source
from nopad.model.packages import version_of
from nopad.runtime.atomic import sha256_of
from nopad.runtime.bundle import Bundle

_PACKAGES = ("nopad", "torch", "transformers", "onnx", "onnxscript", "onnxruntime", "tokenizers", "optimum-onnx")


def source_of(source: Source) -> dict[str, Any]:
    """Where a bundle comes from: the folder's name and the digest of each file that decides its answers.

    For a LoRA adapter: its own files, and those of its base under `base`.
    """
    names = [*module_files(source.folder), setfit.SETTINGS_FILE, setfit.HEAD_FILE]
    beside = [source.home / "config.json", *(source.folder / name for name in names)]
    if source.base is None or source.adapter is None:
        return _digests(source.folder, [*source.weights, *beside])
    own = _digests(source.folder, [source.adapter.file, source.home / SETTINGS_FILE, *beside])
    return {**own, "base": _digests(source.base, [*source.weights, source.base / "config.json"])}


def _digests(folder: Path, files: Sequence[Path]) -> dict[str, Any]:
    digests = {file.relative_to(folder).as_posix(): sha256_of(file) for file in files if file.is_file()}
    return {"name": folder.resolve().name, "sha256": digests}


def created() -> dict[str, Any]:
    """Versions of the packages that made the bundle, and the time (UTC)."""
    versions = {package: version for package in _PACKAGES if (version := version_of(package)) is not None}
    return {**versions, "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")}


def is_source(bundle: Bundle, source: Source) -> bool:
    """Whether `source` has the files that the bundle was exported from."""
    recorded = bundle.manifest.source
    actual = source_of(source)
    pairs = [(recorded, actual), (recorded.get("base") or {}, actual.get("base") or {})]
    return all((ours.get("sha256") or {}).items() <= (theirs.get("sha256") or {}).items() for ours, theirs in pairs)
