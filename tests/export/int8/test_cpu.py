"""int8 for CPUs: integer products against numpy, which layers get them, batch invariance, the search, refusals."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from math import erf
from pathlib import Path

import numpy as np
import onnx
import pytest
from int8_models import BERT, MODERNBERT, Graphs, batches, by_label, graphs, layer_graph, read_imdb, run, session
from onnx import helper, numpy_helper
from reference_models import CASES, token_ids

from nopad.export.errors import ExportError
from nopad.export.graph.node_names import in_layer
from nopad.export.graph.onnx import export_graph
from nopad.export.graph.precision import cast
from nopad.export.int8.cpu import CPU, to_integers
from nopad.export.int8.linear_layers import linear_layers
from nopad.export.int8.quantize import quantize
from nopad.export.int8.sensitivity import Goal
from nopad.model.checkpoint.load import load_checkpoint
from nopad.model.packing import pack


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory, checkpoint: Graphs) -> Graphs:
    """The fp32 graph for CPUs of the embedded checkpoint, or of a small random one."""
    return graphs(tmp_path_factory, checkpoint, precision="fp32", cpu=True)


@pytest.mark.parametrize(
    ("operator", "turned", "added"),
    [
        ("MatMul", False, None),
        ("Gemm", True, None),
        ("Gemm", False, "bias"),
        ("Gemm", True, "bias"),
        ("Gemm", True, "residual"),
    ],
)
@pytest.mark.parametrize("gelu", [False, True])
def test_a_product_is_what_numpy_computes_in_integers(
    operator: str, turned: bool, added: str | None, gelu: bool
) -> None:
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((48, 24)).astype(np.float32)
    x = rng.standard_normal((14, 48)).astype(np.float32)
    x[3] = 0  # a row of zeros
    x[5] *= 1000
    other = {None: None, "bias": rng.standard_normal(24), "residual": rng.standard_normal((14, 24))}[added]
    other = None if other is None else other.astype(np.float32)
    attributes = {"transB": 1} if turned else {}
    model = layer_graph(operator, weight.T.copy() if turned else weight, other, **attributes)
    if gelu:
        model.graph.input[0].name = "before"
        model.graph.node.insert(0, helper.make_node("Gelu", ["before"], ["x"], "model.layers.0.mlp/Gelu"))
    to_integers(model, linear_layers(model), {})
    onnx.checker.check_model(model)
    feeds = {"before" if gelu else "x": x, **({"c": other} if added == "residual" and other is not None else {})}
    ours = session(model).run(None, feeds)[0]

    if gelu:
        x = (x * np.vectorize(lambda value: (1 + erf(value / 2**0.5)) / 2)(x.astype(float))).astype(np.float32)
    channels = np.abs(weight).max(axis=0) / 127
    integers = np.rint(weight / channels)
    least, levels = (0.17, 255) if gelu else (0, 127)
    step = np.abs(x + least).max(axis=-1, keepdims=True) / levels
    rounded = np.clip(np.rint((x + least) / np.maximum(step, 1e-20)), -128, 255)
    plus = 0 if other is None else other
    expected = (rounded @ integers) * step * channels - least * integers.sum(axis=0) * channels + plus
    # A value midway between two integers may go either way: one step of one of 48 products.
    assert (np.abs(ours - expected) <= step * np.abs(weight).max() + 1e-4).all()
    assert np.mean(np.abs(ours - expected)) <= 1e-5 * np.abs(expected).max()
    # Rows keep their own precision beside one that is a thousand times as large.
    exact = x @ weight
    assert np.abs(ours - exact - plus)[0].max() <= 0.05 * np.abs(exact[0]).max()


@pytest.mark.parametrize(
    ("name", "modules", "reads"),
    [
        ("embedded", [f"model.layers.{i}.{part}" for i in range(4) for part in MODERNBERT], 16),
        ("modernbert-token", [f"model.layers.{i}.{part}" for i in range(4) for part in MODERNBERT], 16),
        ("bert-single", [f"bert.encoder.layer.{i}.{part}" for i in range(3) for part in BERT], 12),
    ],
)
def test_exactly_the_linear_layers_are_integers_and_answers_stay_near(
    graph: Graphs, tmp_path: Path, name: str, modules: list[str], reads: int
) -> None:
    made = quantize(CPU, graph(name), tmp_path / "int8.onnx", batches())
    assert sorted(made.int8) == sorted(modules)
    assert (made.kept, made.agreement, made.judged_by, made.passed) == ((), None, "logits", True)
    assert (made.scales, made.weight_bits, made.clipping) == ("per token", 8, "none")
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
        assert np.abs(values.astype(int)).max() == 127
    # Every other node is the one it was: no norm, residual, softmax or head reads int8. Norms have weights of their own
    # now, and a residual of a post-norm encoder reads what they gave before.
    plain = {node.name: node for node in before.graph.node}
    others = [node for node in model.graph.node if "/int8/" not in node.name]
    assert len(others) >= 50
    changed = {node.name: (node, plain[node.name]) for node in others if node != plain[node.name]}
    assert {node.op_type for node, _ in changed.values()} <= {"LayerNormalization", "Add", "Gemm"}
    assert all(node.output == was.output for node, was in changed.values())
    given = {name.removesuffix(":restored") for node, _ in changed.values() for name in node.input[:1]}
    assert given <= {name for _, was in changed.values() for name in was.input}
    tables = {node.name for node in before.graph.node if node.op_type == "Gather" and node.name.endswith("s/Gather")}
    gone = set(plain) - {node.name for node in others}
    assert before_products <= gone <= before_products | tables  # large tables of embeddings are int8, too

    fresh = batches(200)[-3:]
    ours, theirs = run(made.file, fresh), run(graph(name), fresh)
    assert 0 < np.sqrt(np.mean((ours - theirs) ** 2) / np.mean(theirs**2)) < 0.1
    assert 0 < made.logit_error < 0.05


def test_an_answer_does_not_depend_on_the_rest_of_the_batch(graph: Graphs, tmp_path: Path) -> None:
    made = quantize(CPU, graph("embedded"), tmp_path / "int8.onnx", batches(vocab_size=8192))
    texts = [token_ids(3 + 9 * row, 8192, seed=row) for row in range(8)]
    together = run(made.file, [pack(texts)])
    alone = run(made.file, [pack([text]) for text in texts])
    assert np.abs(together - alone).max() < 1e-2  # the gate's bound
    assert np.abs(together - alone).max() < np.abs(together - run(graph("embedded"), [pack(texts)])).max() / 2


def _with_outliers(source: Path, output: Path, layers: Iterable[int]) -> None:
    """The same function, but in these layers one channel before the last product is 16,384 times as large."""
    model = onnx.load(str(source))
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    for layer in layers:
        for name, channel, factor in (
            ("Wi.weight.1", (5, slice(None)), 16384),
            ("Wo.weight", (slice(None), 5), 1 / 16384),
        ):
            tensor = weights[f"model.layers.{layer}.mlp.{name}"]
            values = numpy_helper.to_array(tensor).copy()
            values[channel] *= np.float32(factor)
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    onnx.save(model, str(output))


@pytest.mark.slow
def test_layers_that_int8_would_break_are_found_and_kept(graph: Graphs, tmp_path: Path) -> None:
    odd, texts = tmp_path / "odd.onnx", batches(256, 8192)
    _with_outliers(graph("embedded"), odd, (1, 2))
    theirs = run(odd, texts)
    broken = quantize(replace(CPU, goal=Goal(logit_error=9.0)), odd, tmp_path / "all.onnx", texts)
    assert broken.kept == () and broken.logit_error > 0.05
    made = quantize(CPU, odd, tmp_path / "int8.onnx", texts)
    guilty = {"model.layers.1.mlp.Wo", "model.layers.2.mlp.Wo"}
    assert set(sorted(made.sensitivity, key=lambda module: -made.sensitivity[module])[:2]) == guilty
    assert made.passed is True and set(made.kept) and set(made.kept) <= guilty
    assert made.logit_error < 0.05
    ours = run(made.file, texts)
    assert made.logit_error == pytest.approx(np.sqrt(np.mean((ours - theirs) ** 2) / np.mean(theirs**2)), rel=0.05)
    plain = {node.name for node in onnx.load(str(made.file)).graph.node}
    assert {f"{module}/Gemm" for module in made.kept} <= plain


@pytest.mark.slow
def test_labels_decide_where_there_are_enough(graph: Graphs, tmp_path: Path) -> None:
    output = tmp_path / "int8.onnx"
    many, few = batches(256, 8192), batches(64, 8192)
    made = quantize(CPU, graph("embedded"), output, many, labels_of=by_label)
    same = (run(output, many).argmax(-1) == run(graph("embedded"), many).argmax(-1)).mean()
    assert made.judged_by == "labels"
    assert made.agreement == pytest.approx(same, abs=1 / 256)
    made = quantize(CPU, graph("embedded"), output, few, labels_of=by_label)
    assert made.judged_by == "logits" and made.agreement is not None


def test_a_goal_out_of_reach_is_said_and_half_the_layers_are_kept(graph: Graphs, tmp_path: Path) -> None:
    steps: list[str] = []
    made = quantize(
        replace(CPU, goal=Goal(logit_error=0.0)),
        graph("embedded"),
        tmp_path / "int8.onnx",
        batches(32),
        progress=lambda message, done=0, total=None: steps.append(message),
    )
    assert made.passed is False
    assert (len(made.kept), len(made.int8)) == (8, 8)
    assert "int8: trying with 8 of 16 layers in fp32" in steps
    json.dumps(made.to_json(), allow_nan=False)


def test_a_module_of_several_products_is_one_layer(graph: Graphs, tmp_path: Path) -> None:
    """The graph splits `Wqkv` in three and `Wi` in two: the parts go to int8 or stay together."""
    scheme = replace(CPU, goal=Goal(logit_error=0.0))  # half the layers stay
    made = quantize(scheme, graph("embedded"), tmp_path / "int8.onnx", batches(32))
    parts = {"Wqkv": 3, "Wi": 2, "Wo": 1}
    assert all({module.rpartition(".")[2] for module in side} & {"Wqkv", "Wi"} for side in (made.kept, made.int8))
    nodes = onnx.load(str(made.file)).graph.node
    plain = Counter(node.name.rpartition("/")[0] for node in nodes if node.op_type == "Gemm" and in_layer(node.name))
    integer = Counter(node.name.partition("/")[0] for node in nodes if node.op_type == "MatMulIntegerToFloat")
    assert plain == {module: parts[module.rpartition(".")[2]] for module in made.kept}
    assert integer == {module: parts[module.rpartition(".")[2]] for module in made.int8}


def test_imdb_labels_survive(graph: Graphs, imdb: Path, tmp_path: Path) -> None:
    texts, _ = read_imdb(imdb, "train.jsonl", 200, max_length=256)
    output = tmp_path / "int8.onnx"
    made = quantize(CPU, graph("embedded"), output, texts, labels_of=by_label)
    assert made.passed is True and made.judged_by == "labels"
    fresh, truth = read_imdb(imdb, "test.jsonl", 200, max_length=256)
    ours, exact = (run(path, fresh).argmax(-1) for path in (output, graph("embedded")))
    assert (ours == exact).mean() >= 0.995
    right = np.concatenate(truth)
    assert (exact == right).mean() - (ours == right).mean() <= 0.003


def test_what_cannot_be_quantized_is_refused(graph: Graphs, checkpoint: Graphs, tmp_path: Path) -> None:
    output = tmp_path / "int8.onnx"
    with pytest.raises(ExportError, match=r"0 tokens of them are too few: give at least 1 "):
        quantize(CPU, graph("bert-single"), output, [])
    half = cast(load_checkpoint(checkpoint("bert-single"), **CASES["bert-single"].load).encoder, "fp16")
    export_graph(half, tmp_path / "fp16.onnx")
    with pytest.raises(ExportError, match=r"is float16; .* --precision fp32"):
        quantize(CPU, tmp_path / "fp16.onnx", output, batches(8))
