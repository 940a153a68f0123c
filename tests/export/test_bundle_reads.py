"""An export opens a checkpoint once and hands it on; apart from that only the gate's reference reads it, by itself."""

from __future__ import annotations

import shutil
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nopad.export.bundle import ExportOptions, export_checkpoint
from nopad.runtime.bundle import DEFAULT_CHECKPOINT

OPENED: Counter[str] = Counter()
WATCHED: list[Path] = []


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    """Count, by module, files of the watched folder that our own code opens."""
    if event != "open" or not WATCHED or not isinstance(arguments[0], str):
        return
    path = Path(arguments[0])
    if path.parent != WATCHED[0] or path.name != "config.json":
        return
    frame = sys._getframe(1)
    while frame is not None and not frame.f_globals.get("__name__", "").startswith(("nopad.", "transformers.")):
        frame = frame.f_back  # type: ignore[assignment]
    if frame is not None and frame.f_globals["__name__"].startswith("nopad."):
        OPENED[frame.f_code.co_name] += 1


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[Path]:
    if not getattr(_watch, "added", False):  # an audit hook stays for the life of the process
        sys.addaudithook(_watch)
        _watch.added = True  # type: ignore[attr-defined]
    folder = Path(shutil.copytree(DEFAULT_CHECKPOINT, tmp_path / "checkpoint"))
    OPENED.clear()
    WATCHED.append(folder)
    yield folder
    WATCHED.clear()


@pytest.mark.slow
def test_config_json_is_read_once_and_once_by_the_reference(watched: Path, tmp_path: Path) -> None:
    options = ExportOptions(target="onnx", precision=["fp32", "fp16"], threads=1)
    assert export_checkpoint(watched, tmp_path / "bundle", options).passed
    # The source, the reference (on purpose; one for all files of the bundle), and the digest in the manifest.
    assert OPENED == {"read_raw_config": 2, "sha256_of": 1}
