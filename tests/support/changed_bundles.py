"""Copies of the embedded bundle that answer otherwise, or cannot be served, without an export. Helpers, no tests."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

from nopad.runtime.bundle import DEFAULT_BUNDLE, MANIFEST, open_bundle, record_files, write_manifest
from nopad.runtime.manifest import Calibration, Manifest, from_json


def copied(folder: Path, **fields: object) -> Path:
    """A copy of the embedded bundle, with these fields of its manifest."""
    shutil.copytree(DEFAULT_BUNDLE, folder)
    if fields:
        manifest: Manifest = dataclasses.replace(open_bundle(folder).manifest, **fields)  # type: ignore[arg-type]
        write_manifest(folder, manifest)
    return folder


def warmer(folder: Path, temperature: float = 2.0) -> Path:
    """A copy whose scores are softened by a temperature: another answer to every text, and the same probes."""
    return copied(folder, calibration=Calibration(temperature=temperature))


def tampered(folder: Path, factor: float = 1.5) -> Path:
    """A copy with other weights and the right digests, so that only its answers betray it."""
    import onnx
    from onnx import numpy_helper

    copied(folder)
    graph = folder / "model.cpu.onnx"
    model = onnx.load(graph)
    weight = next(each for each in model.graph.initializer if each.name == "classifier.weight")
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * factor, weight.name))
    onnx.save(model, graph)
    listed = from_json((folder / MANIFEST).read_bytes(), MANIFEST)
    write_manifest(folder, dataclasses.replace(listed, files=record_files(folder)))
    return folder
