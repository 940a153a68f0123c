"""Where a bundle comes from: digests of its checkpoint, versions of what made it."""

from __future__ import annotations

import datetime
import importlib.metadata
from pathlib import Path
from typing import Any

from nopad.model.files import sha256_of
from nopad.model.sentence_transformers import module_files, transformer_folder
from nopad.model.weights import weight_files
from nopad.runtime.bundle import Bundle

_PACKAGES = ("nopad", "torch", "transformers", "onnx", "onnxscript", "onnxruntime", "tokenizers", "optimum-onnx")


def source_of(checkpoint: Path) -> dict[str, Any]:
    """Where a bundle comes from: the folder's name and the digest of each file that decides its answers."""
    home = transformer_folder(checkpoint)
    files = [*weight_files(home), home / "config.json", *(checkpoint / name for name in module_files(checkpoint))]
    digests = {file.relative_to(checkpoint).as_posix(): sha256_of(file) for file in files if file.is_file()}
    return {"name": checkpoint.resolve().name, "sha256": digests}


def created() -> dict[str, Any]:
    """Versions of everything that had a hand in the bundle, and the time (UTC)."""
    versions: dict[str, Any] = {}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {**versions, "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")}


def is_source(bundle: Bundle, checkpoint: Path) -> bool:
    """Whether `checkpoint` has the files that the bundle was exported from."""
    known = bundle.manifest.source.get("sha256") or {}
    return bool(known.items() <= source_of(checkpoint)["sha256"].items())
