"""The embedded model's graphs for GPUs."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from nopad.export.graph.onnx import export_graph
from nopad.export.graph.precision import cast
from nopad.model.checkpoint.load import load_checkpoint
from nopad.runtime.bundle import DEFAULT_BUNDLE, DEFAULT_CHECKPOINT, Bundle, open_bundle
from nopad.runtime.manifest import Artifact


@pytest.fixture(scope="package")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The embedded model as a bundle with the fp32 graph for GPUs, whatever the embedded bundle holds."""
    folder = tmp_path_factory.mktemp("exported")
    graph = export_graph(load_checkpoint(DEFAULT_CHECKPOINT).encoder, folder / "model.onnx")
    artifact = Artifact(
        file="model.onnx",
        target="onnx",
        precision="fp32",
        layout="packed",
        inputs=graph.inputs,
        outputs=graph.outputs,
        token_multiple=graph.token_multiple,
    )
    return Bundle(
        path=folder, manifest=dataclasses.replace(open_bundle(DEFAULT_BUNDLE).manifest, artifacts=(artifact,))
    )


@pytest.fixture(scope="package")
def graph(exported: Bundle) -> Path:
    """Its graph."""
    return exported.file("model.onnx")


@pytest.fixture(scope="package")
def half_graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same in fp16."""
    path = tmp_path_factory.mktemp("half") / "model.onnx"
    export_graph(cast(load_checkpoint(DEFAULT_CHECKPOINT).encoder, "fp16"), path)
    return path
