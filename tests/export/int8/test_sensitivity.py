"""Calibration, the search for layers to keep, and the measures of a quantized graph."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from int8_models import Graphs, batches, by_label, run
from onnx import numpy_helper
from reference_models import token_ids

from nopad.export.errors import ExportError
from nopad.export.int8.qdq import TENSORRT
from nopad.export.int8.quantize import quantize
from nopad.export.int8.sensitivity import Goal
from nopad.model.packing import pack


def test_filler_tokens_are_not_calibrated_on(graph: Graphs, tmp_path: Path) -> None:
    rows = [token_ids(65, seed=row) for row in range(20)]
    made = [
        quantize(
            TENSORRT,
            graph("bert-single"),
            tmp_path / f"{multiple}.onnx",
            [pack([row], multiple=multiple) for row in rows],
        )
        for multiple in (64, 512)
    ]
    first, second = ({t.name: t for t in onnx.load(str(one.file)).graph.initializer} for one in made)
    scales = [name for name in first if name.endswith("_scale")]
    assert len(scales) == 18 + 12  # weights, and tensors read
    worst = max(
        np.abs(numpy_helper.to_array(first[n]).astype(float) / numpy_helper.to_array(second[n]) - 1).max()
        for n in scales
    )
    assert worst < 0.01


def test_activations_beyond_fp16_are_refused(graph: Graphs, tmp_path: Path) -> None:
    model = onnx.load(str(graph("embedded")))
    tensor = next(t for t in model.graph.initializer if t.name == "model.layers.1.mlp.Wi.weight")
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float16(1000), tensor.name))
    onnx.save(model, str(tmp_path / "large.onnx"))
    with pytest.raises(ExportError, match=r"model\.layers\.1\.mlp\.Wo overflows fp16 .* bf16"):
        quantize(TENSORRT, tmp_path / "large.onnx", tmp_path / "int8.onnx", batches())
    model = onnx.load(str(graph("embedded")))
    tensor = next(t for t in model.graph.initializer if t.name == "classifier.weight")
    tensor.CopyFrom(numpy_helper.from_array(np.full(tensor.dims, np.nan, dtype=np.float16), tensor.name))
    onnx.save(model, str(tmp_path / "nan.onnx"))
    with pytest.raises(ExportError, match="answers NaN or infinity"):
        quantize(TENSORRT, tmp_path / "nan.onnx", tmp_path / "int8.onnx", batches())


def _with_outliers(source: Path, output: Path, layers: Iterable[int]) -> None:
    """The same function, but in these layers one channel before the last product is 8,192 times as large."""
    model = onnx.load(str(source))
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    for layer in layers:
        for name, factor in (("Wi", 8192), ("Wo", 1 / 8192)):
            tensor = weights[f"model.layers.{layer}.mlp.{name}.weight"]
            values = numpy_helper.to_array(tensor).copy()
            channel = (len(values) // 2 + 5, slice(None)) if name == "Wi" else (slice(None), 5)  # of the gate
            values[channel] *= np.float16(factor)
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    onnx.save(model, str(output))


@pytest.mark.slow
def test_layers_that_int8_would_break_are_found_and_kept(graph: Graphs, tmp_path: Path) -> None:
    odd, texts = tmp_path / "odd.onnx", batches(256, 8192)
    _with_outliers(graph("embedded"), odd, (1, 2))
    theirs = run(odd, texts)
    assert np.abs(theirs - run(graph("embedded"), texts)).max() < 0.001
    broken = quantize(TENSORRT, odd, tmp_path / "all.onnx", texts)
    assert (run(broken.file, texts).argmax(-1) == theirs.argmax(-1)).mean() < 0.99
    scheme = replace(TENSORRT, goal=Goal(agreement=0.99))
    made = quantize(scheme, odd, tmp_path / "int8.onnx", texts, labels_of=by_label)
    guilty = {"model.layers.1.mlp.Wo", "model.layers.2.mlp.Wo"}
    assert set(sorted(made.sensitivity, key=lambda module: -made.sensitivity[module])[:2]) == guilty
    assert made.passed is True and set(made.kept) and set(made.kept) <= guilty
    assert made.logit_error < broken.logit_error / 2
    assert made.agreement == pytest.approx((run(made.file, texts).argmax(-1) == theirs.argmax(-1)).mean(), abs=0.005)
    assert made.agreement >= 0.99
    before, model = onnx.load(str(odd)), onnx.load(str(made.file))
    plain = {node.name: node for node in before.graph.node}
    weights = {tensor.name: tensor for tensor in before.graph.initializer}
    kept = [n for n in model.graph.node if n.name.rpartition("/")[0] in made.kept and n.op_type == "Gemm"]
    assert len(kept) == len(made.kept) and all(node == plain[node.name] for node in kept)
    for tensor in (tensor for tensor in model.graph.initializer if tensor.name.removesuffix(".weight") in made.kept):
        assert tensor == weights[tensor.name]


@pytest.mark.parametrize(("seconds", "tried"), [(900.0, (0, 1, 2, 4, 8)), (0.0, (0, 1))])
def test_a_goal_out_of_reach_is_said_and_half_the_layers_are_kept(
    graph: Graphs, tmp_path: Path, seconds: float, tried: tuple[int, ...]
) -> None:
    steps: list[str] = []
    made = quantize(
        replace(TENSORRT, goal=Goal(agreement=1.01, seconds=seconds)),
        graph("embedded"),
        tmp_path / "int8.onnx",
        batches(64),
        labels_of=by_label,
        progress=lambda message, done=0, total=None: steps.append(message),
    )
    assert made.passed is False
    assert len(made.kept) == len(made.int8) == 8
    assert made.agreement is not None and 0.9 < made.agreement <= 1
    assert min(made.sensitivity[module] for module in made.kept) >= max(made.sensitivity[m] for m in made.int8)
    assert [step for step in steps if "trying" in step] == [
        f"int8: trying with {count} of 16 layers in fp16" for count in tried
    ]
    json.dumps(made.to_json(), allow_nan=False)


def test_per_token_answers_are_compared_on_real_tokens(graph: Graphs, tmp_path: Path) -> None:
    scheme = replace(TENSORRT, goal=Goal(agreement=0))
    made = quantize(scheme, graph("modernbert-token"), tmp_path / "int8.onnx", batches(64), labels_of=by_label)
    ours, theirs = run(made.file, batches(64)), run(graph("modernbert-token"), batches(64))
    assert made.agreement == pytest.approx((ours.argmax(-1) == theirs.argmax(-1)).mean(), abs=0.003)
