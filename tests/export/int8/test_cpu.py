"""int8 for CPUs: integer products against numpy, which layers get them, batch invariance, the search, refusals."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from int8_models import BERT, MODERNBERT, Array, Graphs, batches, graphs, run, session
from onnx import TensorProto, helper, numpy_helper
from reference_models import CASES, token_ids
from tokenizers import Tokenizer

import nopad.export.int8.cpu
from nopad.export.errors import ExportError
from nopad.export.graph.onnx import export_graph
from nopad.export.graph.precision import cast
from nopad.export.int8.cpu import to_integers
from nopad.export.int8.qdq import count, largest, linear_layers
from nopad.export.int8.quantize import label_reader
from nopad.export.int8.sensitivity import Goal
from nopad.model.checkpoint.load import load_checkpoint
from nopad.model.head import Head
from nopad.model.packing import PackedBatch, pack, plan_batches
from nopad.runtime.bundle import DEFAULT_CHECKPOINT

by_label = label_reader(Head(task="text-classification", problem_type="single_label_classification"))
quantize_cpu = functools.partial(nopad.export.int8.cpu.quantize_cpu, threads=1)


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory, checkpoint: Graphs) -> Graphs:
    """The fp32 graph for CPUs of the embedded checkpoint, or of a small random one."""
    return graphs(tmp_path_factory, checkpoint, precision="fp32", cpu=True)


def layer_graph(
    operator: str, weight: Array, other: Array | None = None, rank: int = 2, **attributes: Any
) -> onnx.ModelProto:
    """x @ weight (+ other) as one layer of an encoder; a matrix to add is an input."""
    width = weight.shape[1] if attributes.get("transB") else weight.shape[0]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None] * (rank - 1) + [width])]
    constants = [numpy_helper.from_array(weight, "w")]
    if other is not None and other.ndim == 1:
        constants.append(numpy_helper.from_array(other, "c"))
    elif other is not None:
        inputs.append(helper.make_tensor_value_info("c", TensorProto.FLOAT, [None, other.shape[1]]))
    names = ["x", "w", *(["c"] if other is not None else [])]
    node = helper.make_node(operator, names, ["y"], f"model.layers.0.mlp.Wo/{operator}", **attributes)
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None] * rank)]
    made = helper.make_graph([node], "layer", inputs, outputs, constants)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


@pytest.mark.parametrize("per_token", [True, False], ids=["per token", "calibrated"])
@pytest.mark.parametrize(
    ("operator", "rank", "turned", "added"),
    [
        ("MatMul", 2, False, None),
        ("MatMul", 3, False, None),
        ("Gemm", 2, True, None),
        ("Gemm", 2, False, "bias"),
        ("Gemm", 2, True, "bias"),
        ("Gemm", 2, True, "residual"),
    ],
)
def test_a_product_is_what_numpy_computes_in_integers(
    operator: str, rank: int, turned: bool, added: str | None, per_token: bool
) -> None:
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((48, 24)).astype(np.float32)
    x = rng.standard_normal((2, 7, 48) if rank == 3 else (14, 48)).astype(np.float32)
    x[..., 3, :] = 0  # a row of zeros
    x[..., 5, :] *= 1000
    other = {None: None, "bias": rng.standard_normal(24), "residual": rng.standard_normal((14, 24))}[added]
    other = None if other is None else other.astype(np.float32)
    attributes = {"transB": 1} if turned else {}
    model = layer_graph(operator, weight.T.copy() if turned else weight, other, rank, **attributes)
    to_integers(model, linear_layers(model), {"x": largest(count(x))}, per_token=per_token)
    onnx.checker.check_model(model)
    feeds = {"x": x, **({"c": other} if added == "residual" else {})}
    ours = session(model).run(None, {k: v for k, v in feeds.items() if v is not None})[0]

    channels = np.abs(weight).max(axis=0) / 63
    integers = np.rint(weight / channels)
    step = np.abs(x).max(axis=-1, keepdims=True) / 127 if per_token else np.float32(largest(count(x)))
    rounded = np.clip(np.rint(x / np.maximum(step, 1e-20)), -128, 127)
    expected = (rounded @ integers) * step * channels + (0 if other is None else other)
    scale = np.abs(expected).max()
    # A value midway between two integers may go either way: one step of one of 48 products.
    assert np.abs(ours - expected).max() <= (np.max(step) * np.abs(weight).max() if per_token else 1e-4 * scale)
    assert np.mean(np.abs(ours - expected)) <= 1e-5 * scale
    if per_token:  # rows keep their own precision beside one that is a thousand times as large
        row = (..., 0, slice(None))
        exact = x @ weight + (0 if other is None else other)
        assert np.abs(ours[row] - exact[row]).max() <= 0.05 * np.abs((x @ weight)[row]).max()


def test_other_products_are_left_alone() -> None:
    weight = np.ones((4, 4), dtype=np.float32)
    for attributes in ({"alpha": 0.5}, {"transA": 1}):
        assert linear_layers(layer_graph("Gemm", weight, **attributes)) == []
    assert len(linear_layers(layer_graph("Gemm", weight, alpha=1.0))) == 1


@pytest.mark.parametrize("static", [False, True], ids=["per token", "calibrated"])
@pytest.mark.parametrize(
    ("name", "modules", "reads"),
    [
        ("embedded", [f"model.layers.{i}.{part}" for i in range(3) for part in MODERNBERT], 12),
        ("modernbert-token", [f"model.layers.{i}.{part}" for i in range(4) for part in MODERNBERT], 16),
        ("bert-single", [f"bert.encoder.layer.{i}.{part}" for i in range(3) for part in BERT], 12),
    ],
)
def test_exactly_the_linear_layers_are_integers_and_answers_stay_near(
    graph: Graphs, tmp_path: Path, name: str, modules: list[str], reads: int, static: bool
) -> None:
    made = quantize_cpu(graph(name), tmp_path / "int8.onnx", batches(), static=static)
    assert sorted(made.int8) == sorted(modules)
    assert (made.kept, made.agreement, made.judged_by, made.passed) == ((), None, "logits", True)
    assert (made.scales, made.weight_bits) == ("calibrated" if static else "per token", 7)
    assert (made.clipping == "none") is not static
    before, model = onnx.load(str(graph(name))), onnx.load(str(made.file))
    assert list(model.graph.input) == list(before.graph.input)
    assert list(model.graph.output) == list(before.graph.output)
    products = [node for node in model.graph.node if node.op_type == "MatMulIntegerToFloat"]
    before_products = {layer.node for layer in linear_layers(before)}
    assert len(products) == len({node.name for node in products}) == len(before_products)
    assert {node.name.partition("/")[0] for node in products} == set(modules)
    # An activation that several products read is rounded once.
    assert sum(node.op_type == "QuantizeLinear" for node in model.graph.node) == reads
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in products:
        values = numpy_helper.to_array(weights[node.input[1]])
        assert values.dtype == np.int8
        assert np.abs(values.astype(int)).max() == 63
        assert 2 * 255 * np.abs(values.astype(int)).max() < 1 << 15  # pairs of products fit in 16 bits
    # Every other node is the one it was, with the inputs it had: no norm, residual, softmax or head reads int8.
    plain = {node.name: node for node in before.graph.node}
    others = [node for node in model.graph.node if "/int8/" not in node.name]
    assert len(others) >= 50
    assert all(node == plain[node.name] for node in others)
    assert set(plain) - {node.name for node in others} == before_products

    fresh = batches(200)[-3:]
    ours, theirs = run(made.file, fresh), run(graph(name), fresh)
    assert 0 < np.sqrt(np.mean((ours - theirs) ** 2) / np.mean(theirs**2)) < 0.1
    assert 0 < made.logit_error < 0.05


@pytest.mark.parametrize("static", [False, True], ids=["per token", "calibrated"])
def test_an_answer_does_not_depend_on_the_rest_of_the_batch(graph: Graphs, tmp_path: Path, static: bool) -> None:
    made = quantize_cpu(graph("embedded"), tmp_path / "int8.onnx", batches(vocab_size=8192), static=static)
    texts = [token_ids(3 + 9 * row, 8192, seed=row) for row in range(8)]
    together = run(made.file, [pack(texts)])
    alone = run(made.file, [pack([text]) for text in texts])
    assert np.abs(together - alone).max() < 1e-2  # the gate's bound
    assert np.abs(together - alone).max() < np.abs(together - run(graph("embedded"), [pack(texts)])).max() / 2


def _with_outliers(source: Path, output: Path, layers: Iterable[int]) -> None:
    """The same function, but in these layers one channel before the last product is 4,096 times as large."""
    model = onnx.load(str(source))
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    for layer in layers:
        for name, channel, factor in (
            ("Wi.weight.1", (5, slice(None)), 4096),
            ("Wo.weight", (slice(None), 5), 1 / 4096),
        ):
            tensor = weights[f"model.layers.{layer}.mlp.{name}"]
            values = numpy_helper.to_array(tensor).copy()
            values[channel] *= np.float32(factor)
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    onnx.save(model, str(output))


@pytest.mark.parametrize("static", [False, True], ids=["per token", "calibrated"])
def test_layers_that_int8_would_break_are_found_and_kept(graph: Graphs, tmp_path: Path, static: bool) -> None:
    odd, texts = tmp_path / "odd.onnx", batches(256, 8192)
    _with_outliers(graph("embedded"), odd, (1, 2))
    theirs = run(odd, texts)
    broken = quantize_cpu(odd, tmp_path / "all.onnx", texts, static=static, goal=Goal(logit_error=9.0))
    assert broken.kept == () and broken.logit_error > 0.05
    made = quantize_cpu(odd, tmp_path / "int8.onnx", texts, static=static)
    guilty = {"model.layers.1.mlp.Wo", "model.layers.2.mlp.Wo"}
    assert set(sorted(made.sensitivity, key=lambda module: -made.sensitivity[module])[:2]) == guilty
    assert made.passed is True and set(made.kept) and set(made.kept) <= guilty
    assert made.logit_error < 0.05
    ours = run(made.file, texts)
    assert made.logit_error == pytest.approx(np.sqrt(np.mean((ours - theirs) ** 2) / np.mean(theirs**2)), rel=0.05)
    plain = {node.name for node in onnx.load(str(made.file)).graph.node}
    assert {f"{module}/Gemm" for module in made.kept} <= plain


def test_labels_decide_where_there_are_enough(graph: Graphs, tmp_path: Path) -> None:
    output = tmp_path / "int8.onnx"
    many, few = batches(256, 8192), batches(64, 8192)
    made = quantize_cpu(graph("embedded"), output, many, static=False, labels_of=by_label)
    same = (run(output, many).argmax(-1) == run(graph("embedded"), many).argmax(-1)).mean()
    assert made.judged_by == "labels"
    assert made.agreement == pytest.approx(same, abs=1 / 256)
    made = quantize_cpu(graph("embedded"), output, few, static=False, labels_of=by_label)
    assert made.judged_by == "logits" and made.agreement is not None


def test_a_goal_out_of_reach_is_said_and_half_the_layers_are_kept(graph: Graphs, tmp_path: Path) -> None:
    steps: list[str] = []
    made = quantize_cpu(
        graph("embedded"),
        tmp_path / "int8.onnx",
        batches(32),
        static=False,
        goal=Goal(logit_error=0.0),
        keep_fp=["*.0.attn.*"],
        progress=lambda message, done=0, total=None: steps.append(message),
    )
    assert made.passed is False
    assert (len(made.kept), len(made.int8)) == (2 + 5, 5)
    assert {"model.layers.0.attn.Wqkv", "model.layers.0.attn.Wo"} < set(made.kept)
    assert "int8: trying with 5 of 10 layers in fp32" in steps
    json.dumps(made.to_json(), allow_nan=False)


def test_a_module_of_several_products_is_one_layer(graph: Graphs, tmp_path: Path) -> None:
    """The graph splits `Wqkv` in three and `Wi` in two: the parts go to int8 or stay together."""
    kept = ["model.layers.1.mlp.Wi", "model.layers.2.attn.Wqkv"]
    made = quantize_cpu(graph("embedded"), tmp_path / "int8.onnx", batches(32), static=False, keep_fp=kept)
    assert (len(made.int8), list(made.kept)) == (10, kept)
    names = [node.name for node in onnx.load(str(made.file)).graph.node]
    parts = [[name for name in names if name.startswith(f"{module}/Gemm")] for module in kept]
    assert [len(one) for one in parts] == [2, 3]
    products = [name for name in names if name.endswith(":MatMulIntegerToFloat")]
    assert len(products) == 3 * (3 + 1 + 2 + 1) - 5


def _read_imdb(imdb: Path, file: str, limit: int) -> tuple[list[PackedBatch], Sequence[Array]]:
    tokenizer = Tokenizer.from_file(str(DEFAULT_CHECKPOINT / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(256)
    with (imdb / file).open() as lines:
        rows = [json.loads(line) for line in islice(lines, limit)]
    ids = [encoding.ids for encoding in tokenizer.encode_batch([row["text"] for row in rows])]
    plan = plan_batches([len(one) for one in ids], token_budget=2048, max_sequences=64)
    labels = np.array([row["label"] for row in rows])
    return [pack([ids[i] for i in members]) for members in plan], [labels[members] for members in plan]


@pytest.mark.parametrize("static", [False, True], ids=["per token", "calibrated"])
def test_imdb_labels_survive(graph: Graphs, imdb: Path, tmp_path: Path, static: bool) -> None:
    texts, labels = _read_imdb(imdb, "train.jsonl", 200)
    output = tmp_path / "int8.onnx"
    made = quantize_cpu(graph("embedded"), output, texts, static=static, labels_of=by_label, labels=labels)
    assert made.passed is True and made.judged_by == "labels" and made.accuracy_loss is not None
    fresh, truth = _read_imdb(imdb, "test.jsonl", 200)
    ours, exact = (run(path, fresh).argmax(-1) for path in (output, graph("embedded")))
    assert (ours == exact).mean() >= 0.995
    right = np.concatenate(truth)
    assert (exact == right).mean() - (ours == right).mean() <= 0.003


def test_what_cannot_be_quantized_is_refused(graph: Graphs, checkpoint: Graphs, tmp_path: Path) -> None:
    output = tmp_path / "int8.onnx"
    with pytest.raises(ExportError, match=r"0 tokens of them are too few: give at least 1 "):
        quantize_cpu(graph("bert-single"), output, [], static=False)
    with pytest.raises(ExportError, match=r"200 tokens of them are too few: give at least 1024 "):
        quantize_cpu(graph("bert-single"), output, [pack([[1, 2]] * 100)], static=True)
    half = cast(load_checkpoint(checkpoint("bert-single"), **CASES["bert-single"].load).encoder, "fp16")
    export_graph(half, tmp_path / "fp16.onnx")
    with pytest.raises(ExportError, match=r"is float16; .* --precision fp32"):
        quantize_cpu(tmp_path / "fp16.onnx", output, batches(8), static=False)
    with pytest.raises(ExportError, match="all 18 linear layers are to stay in fp32"):
        quantize_cpu(graph("bert-single"), output, batches(8), static=False, keep_fp=["*"])
    with pytest.raises(ExportError, match=r"1 arrays of true labels for \d+ batches"):
        quantize_cpu(graph("bert-single"), output, batches(64), static=False, labels=[np.zeros(1)])
    assert not output.exists()
