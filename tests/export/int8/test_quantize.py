"""int8: which layers get Q/DQ and what they hold, calibration, the search for layers to keep, TensorRT-RTX."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from int8_models import BERT, MODERNBERT, Graphs, batches, graphs, run
from onnx import TensorProto, numpy_helper
from reference_models import token_ids
from tokenizers import Tokenizer

import nopad.export.int8.quantize
import nopad.export.int8.sensitivity
from nopad.export.errors import ExportError
from nopad.export.graph.onnx import export_graph
from nopad.export.int8.qdq import CLIPPINGS, count, linear_layers, quantize_weight
from nopad.export.int8.quantize import label_reader
from nopad.export.int8.sensitivity import Goal, QuantizedGraph
from nopad.model.checkpoint.load import load_checkpoint
from nopad.model.head import Head, ProblemType, Task
from nopad.model.packing import PackedBatch, pack, plan_batches
from nopad.runtime.bundle import DEFAULT_CHECKPOINT

by_label = label_reader(Head(task="text-classification", problem_type="single_label_classification"))
quantize = functools.partial(nopad.export.int8.quantize.quantize, threads=1)


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory, checkpoint: Graphs) -> Graphs:
    """The fp16 graph of the embedded checkpoint, or of a small random one."""
    return graphs(tmp_path_factory, checkpoint, precision="fp16", cpu=False)


def types_of(model: onnx.ModelProto) -> dict[str, int]:
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    values = [*inferred.value_info, *inferred.input, *inferred.output]
    types = {value.name: value.type.tensor_type.elem_type for value in values}
    return types | {tensor.name: tensor.data_type for tensor in inferred.initializer}


@pytest.mark.parametrize(
    ("name", "modules"),
    [
        ("embedded", [f"model.layers.{i}.{part}" for i in range(3) for part in MODERNBERT]),
        ("modernbert-token", [f"model.layers.{i}.{part}" for i in range(4) for part in MODERNBERT]),
        ("bert-single", [f"bert.encoder.layer.{i}.{part}" for i in range(3) for part in BERT]),
    ],
)
def test_exactly_the_linear_layers_are_quantized_and_everything_stays_typed(
    graph: Graphs, tmp_path: Path, name: str, modules: list[str]
) -> None:
    made = quantize(graph(name), tmp_path / "int8.onnx", batches())
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
    made = quantize(graph(name), tmp_path / "int8.onnx", batches())
    fresh = batches(200)[-3:]
    ours, theirs = run(made.file, fresh), run(graph(name), fresh)
    assert 0 < np.sqrt(np.mean((ours - theirs) ** 2) / np.mean(theirs**2)) < 0.1
    assert 0 < made.logit_error < 0.1
    assert made.agreement is made.passed is None


def test_a_bare_encoder_has_its_layers_without_a_prefix(graph: Graphs) -> None:
    model = onnx.load(str(graph("embedded")))
    for node in model.graph.node:
        node.name = node.name.removeprefix("model.")
    assert [layer.module for layer in linear_layers(model)] == [
        f"layers.{i}.{part}" for i in range(3) for part in MODERNBERT
    ]


def test_linear_weights_take_half_the_bytes(graph: Graphs, tmp_path: Path) -> None:
    made = quantize(graph("embedded"), tmp_path / "int8.onnx", batches(vocab_size=8192))
    sizes = [
        sum(weight.size * weight.itemsize for weight in _linear_weights(onnx.load(str(path))))
        for path in (graph("embedded"), made.file)
    ]
    assert sizes[1] == sizes[0] / 2
    saved = graph("embedded").stat().st_size - made.file.stat().st_size
    assert saved == pytest.approx(sizes[1], rel=0.1)  # scales and nodes take the rest


def _linear_weights(model: onnx.ModelProto) -> list[np.ndarray[Any, Any]]:
    weights = [t for t in model.graph.initializer if re.search(r"layers\.\d+\..*W\w+\.weight(_int8)?$", t.name)]
    assert len(weights) == 12
    return [numpy_helper.to_array(tensor) for tensor in weights]


def test_weights_are_rounded_to_the_nearest_step_of_their_channel() -> None:
    rng = np.random.default_rng(0)
    weight = (rng.standard_normal((6, 50)) * [[1], [0.1], [30], [1e-3], [1e-6], [0]]).astype(np.float16)
    values, scales = quantize_weight(weight, 0)
    assert (values.dtype, scales.dtype, scales.shape) == (np.int8, np.float16, (6,))
    steps = scales.astype(np.float64)[:, None]
    assert np.isfinite(steps).all() and (steps > 0).all()
    assert (np.abs(values * steps - weight) <= steps / 2 * 1.001).all()
    assert (np.abs(values[:4]).max(axis=1) >= 126).all()  # the range is used, except where fp16 has no finer scale
    assert (values[5] == 0).all()
    turned, same = quantize_weight(weight.T.copy(), 1)
    assert (values == turned.T).all() and (same == scales).all()


def test_clippings_differ_as_they_say() -> None:
    values = np.random.default_rng(1).standard_normal(1_000_000).astype(np.float16)
    values[:20] = 50  # one of fifty thousand
    clip = {name: float(scale(count(values))) * 127 for name, scale in CLIPPINGS.items()}
    assert clip["largest"] == pytest.approx(50, rel=2e-3)
    assert clip["percentile"] == pytest.approx(np.quantile(np.abs(values), 0.9999), rel=1e-2)

    def error(limit: float) -> float:
        exact = values.astype(np.float64)
        step = limit / 127
        return float(np.mean((np.clip(np.rint(exact / step), -127, 127) * step - exact) ** 2))

    assert error(clip["least_squares"]) <= min(error(limit) for limit in np.linspace(3, 50, 48)) * 1.01
    assert all(float(scale(count(np.zeros(9, dtype=np.float16)))) > 0 for scale in CLIPPINGS.values())


def test_filler_tokens_are_not_calibrated_on(graph: Graphs, tmp_path: Path) -> None:
    rows = [token_ids(65, seed=row) for row in range(20)]
    made = [
        quantize(graph("bert-single"), tmp_path / f"{multiple}.onnx", [pack([row], multiple=multiple) for row in rows])
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


def test_layers_can_be_kept_by_name_and_pattern(graph: Graphs, tmp_path: Path) -> None:
    wanted = ["*.mlp.Wo", "model.layers.1.attn.Wqkv"]
    made = quantize(graph("embedded"), tmp_path / "int8.onnx", batches(), keep_fp=wanted)
    kept = {"model.layers.1.attn.Wqkv", *(f"model.layers.{i}.mlp.Wo" for i in range(3))}
    assert set(made.kept) == kept
    assert len(made.int8) == 12 - 4
    before, model = onnx.load(str(graph("embedded"))), onnx.load(str(made.file))
    plain = {node.name: node for node in before.graph.node}
    weights = {tensor.name: tensor for tensor in before.graph.initializer}
    for node in (node for node in model.graph.node if node.name.rpartition("/")[0] in kept and node.op_type == "Gemm"):
        assert node == plain[node.name]
    for tensor in (tensor for tensor in model.graph.initializer if tensor.name.removesuffix(".weight") in kept):
        assert tensor == weights[tensor.name]


def _with_outliers(source: Path, output: Path, layers: Iterable[int]) -> None:
    """The same function, but in these layers one channel before the last product is 2,048 times as large."""
    model = onnx.load(str(source))
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    for layer in layers:
        for name, factor in (("Wi", 2048), ("Wo", 1 / 2048)):
            tensor = weights[f"model.layers.{layer}.mlp.{name}.weight"]
            values = numpy_helper.to_array(tensor).copy()
            channel = (len(values) // 2 + 5, slice(None)) if name == "Wi" else (slice(None), 5)  # of the gate
            values[channel] *= np.float16(factor)
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    onnx.save(model, str(output))


def test_layers_that_int8_would_break_are_found_and_kept(graph: Graphs, tmp_path: Path) -> None:
    odd, texts = tmp_path / "odd.onnx", batches(256, 8192)
    _with_outliers(graph("embedded"), odd, (1, 2))
    theirs = run(odd, texts)
    assert np.abs(theirs - run(graph("embedded"), texts)).max() < 0.001
    broken = quantize(odd, tmp_path / "all.onnx", texts)
    assert (run(broken.file, texts).argmax(-1) == theirs.argmax(-1)).mean() < 0.99
    made = quantize(odd, tmp_path / "int8.onnx", texts, labels_of=by_label, goal=Goal(agreement=0.99))
    guilty = {"model.layers.1.mlp.Wo", "model.layers.2.mlp.Wo"}
    assert set(sorted(made.sensitivity, key=lambda module: -made.sensitivity[module])[:2]) == guilty
    assert made.passed is True and set(made.kept) and set(made.kept) <= guilty
    assert made.logit_error < broken.logit_error / 2
    assert made.agreement == pytest.approx((run(made.file, texts).argmax(-1) == theirs.argmax(-1)).mean(), abs=0.005)
    assert made.agreement >= 0.99


@pytest.mark.parametrize(("seconds", "tried"), [(900.0, (0, 1, 2, 4, 6)), (0.0, (0, 1))])
def test_a_goal_out_of_reach_is_said_and_half_the_layers_are_kept(
    graph: Graphs, tmp_path: Path, seconds: float, tried: tuple[int, ...]
) -> None:
    steps: list[str] = []
    made = quantize(
        graph("embedded"),
        tmp_path / "int8.onnx",
        batches(64),
        labels_of=by_label,
        goal=Goal(agreement=1.01, seconds=seconds),
        progress=lambda message, done=0, total=None: steps.append(message),
    )
    assert made.passed is False
    assert len(made.kept) == len(made.int8) == 6
    assert made.agreement is not None and 0.9 < made.agreement <= 1
    assert min(made.sensitivity[module] for module in made.kept) >= max(made.sensitivity[m] for m in made.int8)
    assert [step for step in steps if "trying" in step] == [
        f"int8: trying with {count} of 12 layers in fp16" for count in tried
    ]
    json.dumps(made.to_json(), allow_nan=False)


def test_true_labels_count_too(graph: Graphs, tmp_path: Path) -> None:
    texts = batches(64)
    name, output = graph("embedded"), tmp_path / "int8.onnx"
    right = [run(name, [batch]).argmax(-1) for batch in texts]
    made = quantize(name, output, texts, labels_of=by_label, targets=right, goal=Goal(agreement=0.5, accuracy_loss=1.0))
    assert made.accuracy_loss == pytest.approx(1 - (made.agreement or 0))
    assert made.passed is True and made.kept == ()
    strict = Goal(agreement=0.0, accuracy_loss=-0.5)  # nothing gains half of the texts
    assert quantize(name, output, texts, labels_of=by_label, targets=right, goal=strict).passed is False
    with pytest.raises(ExportError, match=r"1 arrays of true labels for \d+ batches"):
        quantize(name, output, texts, labels_of=by_label, targets=right[:1])


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


def test_per_token_answers_are_compared_on_real_tokens(graph: Graphs, tmp_path: Path) -> None:
    read = label_reader(Head(task="token-classification"))
    made = quantize(
        graph("modernbert-token"), tmp_path / "int8.onnx", batches(64), labels_of=read, goal=Goal(agreement=0)
    )
    ours, theirs = run(made.file, batches(64)), run(graph("modernbert-token"), batches(64))
    assert made.agreement == pytest.approx((ours.argmax(-1) == theirs.argmax(-1)).mean(), abs=0.003)


def test_large_weights_go_to_a_file_beside_the_graph(
    graph: Graphs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = graph("embedded")
    inline = quantize(name, tmp_path / "inline.onnx", batches())
    model = onnx.load(str(name))
    onnx.save_model(model, str(tmp_path / "in.onnx"), save_as_external_data=True, location="in.onnx.data")
    monkeypatch.setattr(nopad.export.int8.sensitivity, "INLINE_BYTES", 0)
    made = quantize(tmp_path / "in.onnx", tmp_path / "out.onnx", batches())
    assert (tmp_path / "out.onnx.data").stat().st_size > 50_000 > (tmp_path / "out.onnx").stat().st_size // 4
    assert (run(made.file, batches()) == run(inline.file, batches())).all()
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "in.onnx",
        "in.onnx.data",
        "inline.onnx",
        "out.onnx",
        "out.onnx.data",
    ]


def test_too_little_to_calibrate_on_is_refused(graph: Graphs, tmp_path: Path) -> None:
    for texts in ([], [pack([[1, 2]] * 100)]):
        with pytest.raises(ExportError, match=r"calibrated on texts, and \d+ tokens of them are too few.*1024"):
            quantize(graph("bert-single"), tmp_path / "int8.onnx", texts)
    assert list(tmp_path.iterdir()) == []


def test_other_graphs_are_refused(graph: Graphs, tmp_path: Path) -> None:
    output = tmp_path / "int8.onnx"
    model = onnx.load(str(graph("bert-single")))
    for tensor in (tensor for tensor in model.graph.initializer if tensor.name.endswith("weight")):
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name))
    onnx.save(model, str(tmp_path / "fp32.onnx"))
    with pytest.raises(ExportError, match=r"bert\.encoder\.layer\.0\S+ is float; .* --precision fp16"):
        quantize(tmp_path / "fp32.onnx", output, batches())
    model = onnx.load(str(graph("bert-single")))
    for number, node in enumerate(model.graph.node):
        node.name = f"/{node.op_type}_{number}"  # as other exporters have it
    onnx.save(model, str(tmp_path / "other.onnx"))
    with pytest.raises(ExportError, match="no linear layers as nopad names them.*--exporter nopad"):
        quantize(tmp_path / "other.onnx", output, batches())
    (tmp_path / "cut.onnx").write_bytes(graph("bert-single").read_bytes()[:5000])
    for name in ("cut.onnx", "missing.onnx"):
        with pytest.raises(ExportError, match=f"cannot read .*{name}"):
            quantize(tmp_path / name, output, batches())
    with pytest.raises(ExportError, match=r"no linear layer is called \*\.Wqkv: they are bert\.encoder"):
        quantize(graph("bert-single"), output, batches(), keep_fp=["*.Wqkv"])
    with pytest.raises(ExportError, match="all 18 linear layers are to stay in fp16"):
        quantize(graph("bert-single"), output, batches(), keep_fp=["*"])
    assert not output.exists()


def test_activations_beyond_fp16_are_refused(graph: Graphs, tmp_path: Path) -> None:
    model = onnx.load(str(graph("embedded")))
    tensor = next(t for t in model.graph.initializer if t.name == "model.layers.1.mlp.Wi.weight")
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float16(1000), tensor.name))
    onnx.save(model, str(tmp_path / "large.onnx"))
    with pytest.raises(ExportError, match=r"model\.layers\.1\.mlp\.Wo overflows fp16 .* bf16"):
        quantize(tmp_path / "large.onnx", tmp_path / "int8.onnx", batches())
    model = onnx.load(str(graph("embedded")))
    tensor = next(t for t in model.graph.initializer if t.name == "classifier.weight")
    tensor.CopyFrom(numpy_helper.from_array(np.full(tensor.dims, np.nan, dtype=np.float16), tensor.name))
    onnx.save(model, str(tmp_path / "nan.onnx"))
    with pytest.raises(ExportError, match="answers NaN or infinity"):
        quantize(tmp_path / "nan.onnx", tmp_path / "int8.onnx", batches())


def test_imdb_labels_survive(graph: Graphs, imdb: Path, tmp_path: Path) -> None:
    def reviews(file: str, limit: int) -> tuple[list[PackedBatch], list[Any]]:
        tokenizer = Tokenizer.from_file(str(DEFAULT_CHECKPOINT / "tokenizer.json"))
        tokenizer.no_padding()
        tokenizer.enable_truncation(512)
        with (imdb / file).open() as lines:
            rows = [json.loads(line) for line in islice(lines, limit)]
        ids = [encoding.ids for encoding in tokenizer.encode_batch([row["text"] for row in rows])]
        plan = plan_batches([len(one) for one in ids], token_budget=2048, max_sequences=64)
        labels = np.array([row["label"] for row in rows])
        return [pack([ids[i] for i in members]) for members in plan], [labels[members] for members in plan]

    texts, labels = reviews("train.jsonl", 64)
    made = quantize(graph("embedded"), tmp_path / "int8.onnx", texts, labels_of=by_label, targets=labels)
    assert made.passed is True and made.kept == () and made.logit_error < 0.05
    fresh, truth = reviews("test.jsonl", 200)
    unrounded = export_graph(load_checkpoint(DEFAULT_CHECKPOINT).encoder, tmp_path / "fp32.onnx").file
    ours, exact = (run(path, fresh).argmax(-1) for path in (made.file, unrounded))
    assert (ours == exact).mean() >= 0.995
    right = np.concatenate(truth)
    assert (exact == right).mean() - (ours == right).mean() <= 0.003


@pytest.fixture(scope="module")
def int8(graph: Graphs, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], QuantizedGraph]:
    made: dict[str, QuantizedGraph] = {}

    def get(name: str) -> QuantizedGraph:
        if name not in made:
            vocab_size = 8192 if name == "embedded" else 200
            output = tmp_path_factory.mktemp(name) / "int8.onnx"
            made[name] = quantize(graph(name), output, batches(vocab_size=vocab_size))
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
