"""Fixtures for tests of commands: a bundle to damage, and tables that are not folded."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture
def own(bundle: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    """A copy of the bundle, to be damaged."""
    folder = Path(shutil.copytree(bundle("modernbert-single-mean"), tmp_path / "bundle"))
    capsys.readouterr()  # of its export
    return folder


@pytest.fixture
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables are not folded."""
    monkeypatch.setenv("COLUMNS", "1000")
