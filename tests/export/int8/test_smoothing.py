"""Outlier channels moved into weights: the graph computes what it did, and its norms are evenly large."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from int8_models import Graphs, batches, graphs, run
from onnx import numpy_helper

from nopad.export.int8.activations import channels
from nopad.export.int8.linear_layers import linear_layers
from nopad.export.int8.smoothing import smooth


@pytest.mark.parametrize("name", ["bert-single", "modernbert-token"])
def test_smoothing_is_exact_and_takes_outliers_away(
    tmp_path_factory: pytest.TempPathFactory, checkpoint: Graphs, tmp_path: Path, name: str
) -> None:
    plain = graphs(tmp_path_factory, checkpoint, precision="fp32", cpu=True)(name)
    model, texts = onnx.load(str(plain)), batches(32)
    norms = [node for node in model.graph.node if node.op_type == "LayerNormalization"]
    read = {layer.activation for layer in linear_layers(model)}
    first = next(node for node in norms if node.output[0] in read)
    gamma = next(tensor for tensor in model.graph.initializer if tensor.name == first.input[1])
    values = numpy_helper.to_array(gamma).copy()
    values[3] *= 50  # an outlier channel
    gamma.CopyFrom(numpy_helper.from_array(values, gamma.name))
    onnx.save(model, str(tmp_path / "odd.onnx"))
    before = channels(model, [first.output[0]], texts)[first.output[0]].reach
    assert smooth(model, linear_layers(model), texts) >= 3
    onnx.checker.check_model(model)
    onnx.save(model, str(tmp_path / "smooth.onnx"))
    after = channels(model, [first.output[0]], texts)[first.output[0]].reach
    assert before.max() / np.median(before) > 10 > 4 > after.max() / np.median(after)
    ours, theirs = run(tmp_path / "smooth.onnx", texts), run(tmp_path / "odd.onnx", texts)
    assert np.abs(ours - theirs).max() <= 1e-5 * max(1, np.abs(theirs).max())
