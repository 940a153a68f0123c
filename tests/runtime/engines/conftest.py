"""Graphs of small encoders without the parity gate's work, and batches for them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from nopad.runtime.manifest import Artifact

Graphs = Callable[[str], tuple[Path, Artifact]]


@pytest.fixture(scope="session")
def graph(tmp_path_factory: pytest.TempPathFactory, checkpoint: Callable[[str], Path]) -> Graphs:
    """The fp32 ONNX graph of one of `reference_models.CASES`, and the manifest's record of it."""
    made: dict[str, tuple[Path, Artifact]] = {}

    def get(name: str) -> tuple[Path, Artifact]:
        if name not in made:
            from reference_models import CASES

            from nopad.export.onnx import export_graph
            from nopad.model.checkpoint import load_checkpoint

            encoder = load_checkpoint(checkpoint(name), **CASES[name].load).encoder
            written = export_graph(encoder, tmp_path_factory.mktemp(f"graph-{name}") / "model.onnx")
            made[name] = (
                written.file,
                Artifact(
                    file="model.onnx",
                    target="onnx",
                    precision="fp32",
                    layout="packed",
                    inputs=written.inputs,
                    outputs=written.outputs,
                    token_multiple=written.token_multiple,
                ),
            )
        return made[name]

    return get


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder of the test's own."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path / "home"
