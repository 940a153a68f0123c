"""A graph and texts to int8: the labels that decide, refusals, and real reviews."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from int8_models import Graphs, batches, by_label, read_imdb, run
from onnx import numpy_helper

from nopad.export.errors import ExportError
from nopad.export.graph.onnx import export_graph
from nopad.export.int8.qdq import TENSORRT
from nopad.export.int8.quantize import label_reader, quantize
from nopad.export.int8.sensitivity import Goal
from nopad.model.checkpoint.load import load_checkpoint
from nopad.model.head import Head, ProblemType, Task
from nopad.model.packing import pack
from nopad.runtime.bundle import DEFAULT_CHECKPOINT


@pytest.mark.parametrize(
    ("task", "problem_type", "expected"),
    [
        ("text-classification", "single_label_classification", [2, 0]),
        ("token-classification", None, [2, 0]),
        ("text-classification", "multi_label_classification", [[False, True, True], [True, False, False]]),
        ("text-classification", "regression", None),
        ("embeddings", None, None),
        ("rerank", None, None),
    ],
)
def test_labels_are_read_as_the_task_has_them(task: Task, problem_type: ProblemType | None, expected: Any) -> None:
    read = label_reader(Head(task=task, problem_type=problem_type))
    if expected is None:
        assert read is None
    else:
        assert read is not None
        assert read(np.array([[-1, 1, 2], [3, -1, -2]], dtype=np.float32)).tolist() == expected


def test_too_little_to_calibrate_on_is_refused(graph: Graphs, tmp_path: Path) -> None:
    for texts in ([], [pack([[1, 2]] * 100)]):
        with pytest.raises(ExportError, match=r"calibrated on texts, and \d+ tokens of them are too few.*1024"):
            quantize(TENSORRT, graph("bert-single"), tmp_path / "int8.onnx", texts)
    assert list(tmp_path.iterdir()) == []


def test_other_graphs_are_refused(graph: Graphs, tmp_path: Path) -> None:
    output = tmp_path / "int8.onnx"
    model = onnx.load(str(graph("bert-single")))
    for tensor in (tensor for tensor in model.graph.initializer if tensor.name.endswith("weight")):
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name))
    onnx.save(model, str(tmp_path / "fp32.onnx"))
    with pytest.raises(ExportError, match=r"bert\.encoder\.layer\.0\S+ is float; .* --precision fp16"):
        quantize(TENSORRT, tmp_path / "fp32.onnx", output, batches())
    model = onnx.load(str(graph("bert-single")))
    for number, node in enumerate(model.graph.node):
        node.name = f"/{node.op_type}_{number}"  # as other exporters have it
    onnx.save(model, str(tmp_path / "other.onnx"))
    with pytest.raises(ExportError, match="no linear layers as nopad names them.*--exporter nopad"):
        quantize(TENSORRT, tmp_path / "other.onnx", output, batches())
    assert not output.exists()


@pytest.mark.slow
def test_imdb_labels_survive(graph: Graphs, imdb: Path, tmp_path: Path) -> None:
    texts, _ = read_imdb(imdb, "train.jsonl", 64, max_length=512)
    scheme = replace(TENSORRT, goal=Goal(agreement=63 / 64))  # one of these reviews stands at the boundary
    made = quantize(scheme, graph("embedded"), tmp_path / "int8.onnx", texts, labels_of=by_label)
    assert made.passed is True and made.kept == () and made.logit_error < 0.05
    fresh, truth = read_imdb(imdb, "test.jsonl", 200, max_length=512)
    unrounded = export_graph(load_checkpoint(DEFAULT_CHECKPOINT).encoder, tmp_path / "fp32.onnx").file
    ours, exact = (run(path, fresh).argmax(-1) for path in (made.file, unrounded))
    assert (ours == exact).mean() >= 0.995
    right = np.concatenate(truth)
    assert (exact == right).mean() - (ours == right).mean() <= 0.003
