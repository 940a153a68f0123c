"""The bundle folder: open and verify it, build a new one, update its manifest. Knows no engine."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nopad.runtime.atomic import sha256_of, write_file
from nopad.runtime.errors import BundleError, IntegrityError
from nopad.runtime.manifest import Artifact, Calibration, FileRecord, Manifest, from_json, to_json
from nopad.runtime.probes import Probe

MANIFEST = "manifest.json"
TUNING = "tuning.json"  # of `nopad tune`, about machines: no part of the bundle, so the manifest does not list it
DEFAULT_BUNDLE = Path(__file__).parent / "default" / "bundle"
DEFAULT_CHECKPOINT = Path(__file__).parent / "default" / "checkpoint"


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """An opened bundle."""

    path: Path
    manifest: Manifest

    def file(self, name: str) -> Path:
        """Path of one of the bundle's files."""
        return self.path / name

    def files_of(self, artifact: Artifact) -> list[str]:
        """Names of an artifact's files: its own, and its weights beside it."""
        return [name for name in self.manifest.files if name == artifact.file or name.startswith(f"{artifact.file}.")]

    def common_files(self) -> list[str]:
        """Names of the files that are no artifact's alone: the tokenizer's, configurations."""
        own = {name for artifact in self.manifest.artifacts for name in self.files_of(artifact)}
        return [name for name in self.manifest.files if name not in own]

    def check(self, names: Iterable[str]) -> None:
        """Compare files with their digests in the manifest. Raises `IntegrityError`."""
        for name in names:
            if sha256_of(self.file(name)) != self.manifest.files[name].sha256:
                raise IntegrityError(f"{self.file(name)} is damaged: its SHA-256 is not the manifest's; copy it again")


def open_bundle(path: str | Path | None = None, *, verify: bool = True, artifacts: bool = True) -> Bundle:
    """Open a bundle folder (None: the embedded default) and check every file's size and SHA-256.

    `verify=False` skips the digests, not the sizes. `artifacts=False`: the files of artifacts lie elsewhere and are not
    asked for. Raises `BundleError` or a subclass.
    """
    folder = Path(path) if path is not None else DEFAULT_BUNDLE
    manifest_path = folder / MANIFEST
    if not folder.is_dir():
        raise BundleError(f"no bundle at {folder}: the folder does not exist")
    try:
        data = manifest_path.read_bytes()
    except FileNotFoundError:
        hint = "; it is a checkpoint: export it first with nopad export" if (folder / "config.json").is_file() else ""
        raise BundleError(f"{folder} is not a bundle: it has no {MANIFEST}{hint}") from None
    except OSError as error:
        raise BundleError(f"cannot read {manifest_path}: {error.strerror}") from None
    manifest = from_json(data, str(manifest_path))
    bundle = Bundle(path=folder, manifest=manifest)
    names = list(manifest.files) if artifacts else bundle.common_files()
    root = folder.resolve()
    for name in names:
        file, record = folder / name, manifest.files[name]
        if not file.resolve().is_relative_to(root):
            raise BundleError(f"{file} points outside the bundle; copy the real file in its place")
        if not file.is_file():
            raise BundleError(f"{folder} lacks the file {name}; copy the whole folder again")
        if file.stat().st_size != record.bytes:
            raise IntegrityError(
                f"{file} has {file.stat().st_size} bytes, the manifest says {record.bytes}; copy it again"
            )
    if verify:
        bundle.check(names)
    return bundle


def recorded_files(folder: Path) -> frozenset[str]:
    """Names that a folder's manifest lists, damaged as it may be; none where there is no manifest of nopad's."""
    try:
        raw = json.loads((folder / MANIFEST).read_bytes())
        return frozenset(raw["files"]) if isinstance(raw["format_version"], int) else frozenset()
    except (OSError, ValueError, KeyError, TypeError):
        return frozenset()


def record_files(folder: Path) -> dict[str, FileRecord]:
    """Size and digest of every file below `folder` that is part of the bundle, the manifest excepted."""
    return {
        file.relative_to(folder).as_posix(): FileRecord(sha256=sha256_of(file), bytes=file.stat().st_size)
        for file in sorted(folder.rglob("*"))
        if file.is_file() and file.name not in (MANIFEST, TUNING)
    }


def write_manifest(folder: Path, manifest: Manifest) -> Bundle:
    """Write (or replace) the manifest of `folder`, atomically."""
    write_file(folder / MANIFEST, to_json(manifest))
    return Bundle(path=folder, manifest=manifest)


def record_parity(
    bundle: Bundle, file: str, engine: str, report: Mapping[str, Any], evaluation: Mapping[str, Any] | None = None
) -> Bundle:
    """Record the parity report (as JSON) of one artifact on one engine in the manifest; returns the updated bundle.

    Raises `BundleError` if the bundle was replaced since it was opened.
    """
    bundle = _reopened(bundle)
    artifacts = tuple(
        dataclasses.replace(artifact, parity={**artifact.parity, engine: report}) if artifact.file == file else artifact
        for artifact in bundle.manifest.artifacts
    )
    manifest = dataclasses.replace(
        bundle.manifest, artifacts=artifacts, evaluation=evaluation or bundle.manifest.evaluation
    )
    return write_manifest(bundle.path, manifest)


def record_calibration(bundle: Bundle, calibration: Calibration | None) -> Bundle:
    """Write a calibration into the manifest, or remove it (None); returns the updated bundle.

    Raises `BundleError` if the bundle was replaced since it was opened.
    """
    return write_manifest(bundle.path, dataclasses.replace(_reopened(bundle).manifest, calibration=calibration))


def record_probes(bundle: Bundle, probes: Iterable[Probe]) -> Bundle:
    """Write probes into the manifest, in the place of those that it has; returns the updated bundle.

    Raises `BundleError` if the bundle was replaced since it was opened.
    """
    return write_manifest(bundle.path, dataclasses.replace(_reopened(bundle).manifest, probes=tuple(probes)))


def _reopened(bundle: Bundle) -> Bundle:
    """The bundle with its manifest of now: what takes minutes must not undo what another command wrote meanwhile."""
    now = open_bundle(bundle.path, verify=False)
    if (now.manifest.files, now.manifest.labels) != (bundle.manifest.files, bundle.manifest.labels):
        raise BundleError(f"{bundle.path} was replaced meanwhile, so nothing was recorded; run the command again")
    return now
