"""Graphs of small encoders, shared with the rest of the suite."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from nopad.runtime.bundle import open_bundle
from nopad.runtime.manifest import Artifact

Graphs = Callable[[str], tuple[Path, Artifact]]


@pytest.fixture(scope="session")
def graph(plain_bundle: Callable[[str], Path]) -> Graphs:
    """The fp32 graph in plain ONNX of one of `reference_models.CASES`, and the manifest's record of it."""

    def get(name: str) -> tuple[Path, Artifact]:
        opened = open_bundle(plain_bundle(name))
        (artifact,) = opened.manifest.artifacts
        return opened.file(artifact.file), artifact

    return get


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder of the test's own."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path / "home"
