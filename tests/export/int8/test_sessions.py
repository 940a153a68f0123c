"""Graphs read and written on the way to int8."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from int8_models import Graphs, batches, run

import nopad.export.int8.sessions
from nopad.export.errors import ExportError
from nopad.export.int8.qdq import TENSORRT
from nopad.export.int8.quantize import quantize
from nopad.export.int8.sessions import read_model


def test_large_weights_go_to_a_file_beside_the_graph(
    graph: Graphs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = graph("embedded")
    inline = quantize(TENSORRT, name, tmp_path / "inline.onnx", batches())
    model = onnx.load(str(name))
    onnx.save_model(model, str(tmp_path / "in.onnx"), save_as_external_data=True, location="in.onnx.data")
    monkeypatch.setattr(nopad.export.int8.sessions, "INLINE_BYTES", 0)
    made = quantize(TENSORRT, tmp_path / "in.onnx", tmp_path / "out.onnx", batches())
    assert (tmp_path / "out.onnx.data").stat().st_size > 50_000 > (tmp_path / "out.onnx").stat().st_size // 4
    assert (tmp_path / "out.onnx.data").stat().st_mode == (tmp_path / "out.onnx").stat().st_mode
    assert (run(made.file, batches()) == run(inline.file, batches())).all()
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "in.onnx",
        "in.onnx.data",
        "inline.onnx",
        "out.onnx",
        "out.onnx.data",
    ]


def test_a_file_that_is_no_graph_is_refused(graph: Graphs, tmp_path: Path) -> None:
    (tmp_path / "cut.onnx").write_bytes(graph("bert-single").read_bytes()[:5000])
    for name in ("cut.onnx", "missing.onnx"):
        with pytest.raises(ExportError, match=f"cannot read .*{name}"):
            read_model(tmp_path / name)
