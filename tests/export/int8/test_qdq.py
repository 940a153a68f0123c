"""int8 for TensorRT: which layers get Q/DQ and what they hold, and what TensorRT-RTX makes of it."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from int8_models import BERT, MODERNBERT, Graphs, batches, run
from onnx import TensorProto, numpy_helper

from nopad.export.int8.qdq import TENSORRT
from nopad.export.int8.quantize import quantize
from nopad.export.int8.sensitivity import QuantizedGraph


def types_of(model: onnx.ModelProto) -> dict[str, int]:
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    values = [*inferred.value_info, *inferred.input, *inferred.output]
    types = {value.name: value.type.tensor_type.elem_type for value in values}
    return types | {tensor.name: tensor.data_type for tensor in inferred.initializer}


@pytest.mark.parametrize(
    ("name", "modules"),
    [
        ("embedded", [f"model.layers.{i}.{part}" for i in range(4) for part in MODERNBERT]),
        ("modernbert-token", [f"model.layers.{i}.{part}" for i in range(4) for part in MODERNBERT]),
        ("bert-single", [f"bert.encoder.layer.{i}.{part}" for i in range(3) for part in BERT]),
    ],
)
def test_exactly_the_linear_layers_are_quantized_and_everything_stays_typed(
    graph: Graphs, tmp_path: Path, name: str, modules: list[str]
) -> None:
    made = quantize(TENSORRT, graph(name), tmp_path / "int8.onnx", batches())
    assert sorted(made.int8) == sorted(modules)
    assert made.kept == ()
    before, model = onnx.load(str(graph(name))), onnx.load(str(made.file))
    onnx.checker.check_model(model, full_check=True)
    assert list(model.graph.input) == list(before.graph.input)
    assert list(model.graph.output) == list(before.graph.output)
    types = types_of(model)
    made_by = {output: node for node in model.graph.node for output in node.output}
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in (
        node for node in model.graph.node if node.name.rpartition("/")[0] in modules and node.op_type == "Gemm"
    ):
        activation, weight = made_by[node.input[0]], made_by[node.input[1]]
        assert [activation.op_type, weight.op_type] == ["DequantizeLinear"] * 2
        assert made_by[activation.input[0]].op_type == "QuantizeLinear"
        assert types[activation.input[0]] == types[weight.input[0]] == TensorProto.INT8
        assert types[activation.input[1]] == types[weight.input[1]] == TensorProto.FLOAT16
        assert list(weights[activation.input[1]].dims) == []
        assert list(weights[weight.input[1]].dims) == list(weights[weight.input[0]].dims)[:1]  # one per output channel
        assert {types[tensor] for tensor in (*node.input, *node.output)} == {TensorProto.FLOAT16}  # the bias too
    # Every other node is the one it was, with the inputs it had: no norm, residual, softmax or head reads int8.
    plain = {node.name: node for node in before.graph.node}
    inserted = ("QuantizeLinear", "DequantizeLinear")
    others = [n for n in model.graph.node if n.op_type not in inserted and n.name.rpartition("/")[0] not in modules]
    assert len(others) >= 50
    assert all(node == plain[node.name] for node in others)
    assert {node.name for node in model.graph.node if node.op_type not in inserted} == set(plain)


@pytest.mark.parametrize("name", ["embedded", "bert-single", "modernbert-token"])
def test_answers_stay_near_those_of_the_fp16_graph(graph: Graphs, tmp_path: Path, name: str) -> None:
    made = quantize(TENSORRT, graph(name), tmp_path / "int8.onnx", batches())
    fresh = batches(200)[-3:]
    ours, theirs = run(made.file, fresh), run(graph(name), fresh)
    assert 0 < np.sqrt(np.mean((ours - theirs) ** 2) / np.mean(theirs**2)) < 0.1
    assert 0 < made.logit_error < 0.1
    assert made.agreement is made.passed is None


def test_linear_weights_take_half_the_bytes(graph: Graphs, tmp_path: Path) -> None:
    made = quantize(TENSORRT, graph("embedded"), tmp_path / "int8.onnx", batches(vocab_size=8192))
    sizes = [
        sum(weight.size * weight.itemsize for weight in _linear_weights(onnx.load(str(path))))
        for path in (graph("embedded"), made.file)
    ]
    assert sizes[1] == sizes[0] / 2
    saved = graph("embedded").stat().st_size - made.file.stat().st_size
    assert saved == pytest.approx(sizes[1], rel=0.1)  # scales and nodes take the rest


def _linear_weights(model: onnx.ModelProto) -> list[np.ndarray[Any, Any]]:
    weights = [t for t in model.graph.initializer if re.search(r"layers\.\d+\..*W\w+\.weight(_int8)?$", t.name)]
    assert len(weights) == 16
    return [numpy_helper.to_array(tensor) for tensor in weights]


@pytest.fixture(scope="module")
def int8(graph: Graphs, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], QuantizedGraph]:
    made: dict[str, QuantizedGraph] = {}

    def get(name: str) -> QuantizedGraph:
        if name not in made:
            vocab_size = 8192 if name == "embedded" else 200
            output = tmp_path_factory.mktemp(name) / "int8.onnx"
            made[name] = quantize(TENSORRT, graph(name), output, batches(vocab_size=vocab_size))
        return made[name]

    return get


@pytest.mark.parametrize("sm", ["SM75", "SM89"])
@pytest.mark.parametrize("name", ["embedded", "bert-single"])
def test_tensorrt_rtx_builds_int8_products(int8: Callable[[str], QuantizedGraph], name: str, sm: str) -> None:
    trt = pytest.importorskip("tensorrt_rtx")
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, logger)
    assert parser.parse_from_file(str(int8(name).file)), [str(parser.get_error(i)) for i in range(parser.num_errors)]
    layers = {network.get_layer(i).name: network.get_layer(i) for i in range(network.num_layers)}
    made_by = {layer.get_output(i).name: layer for layer in layers.values() for i in range(layer.num_outputs)}
    for module in int8(name).int8:
        product = layers[f"{module}/Gemm"]
        assert product.type == trt.LayerType.MATRIX_MULTIPLY
        assert product.get_output(0).dtype == trt.DataType.HALF
        for index in range(2):
            source = made_by[product.get_input(index).name]
            assert source.type == trt.LayerType.DEQUANTIZE
            assert source.get_input(0).dtype == trt.DataType.INT8
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(getattr(trt.ComputeCapability, sm), 0)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    profile = builder.create_optimization_profile()
    for index in range(network.num_inputs):
        value = network.get_input(index)
        shapes = ((1, 1), (8, 64), (64, 512)) if value.name == "pad_index" else ((64,), (512,), (2048,))
        profile.set_shape(value.name, *shapes)
    config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    assert plan is not None
    products = _products(bytes(plan))
    for module in int8(name).int8:
        assert products[f"{module}/Gemm"] == {"int8"}
    assert products["classifier/Gemm"] == {"half"}


def _products(plan: bytes) -> dict[str, set[str]]:
    """Matrix products of a TensorRT-RTX plan and the types of their two matrices, from the program text in it."""
    text = plan.decode("latin-1")
    types = dict(re.findall(r'tensor=\{[^\n]*? name="([^"]+)"[^\n]*? type=(\w+)', text))
    found = re.findall(r'fully_connected=\{ name="([^"]+)" output=\{[^}]*\} input=\{"([^"]+)" "([^"]+)"', text)
    # Products of one activation (query, key and value) are one: `.../value/Gemm+.../key/Gemm+.../query/Gemm`.
    return {name: {types[a], types[b]} for names, a, b in found for name in names.split("+")}
