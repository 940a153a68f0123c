"""Groups counted from a graph: the FLOP count of the cost model, and the bytes that a compiler's fusion leaves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from reference_models import CASES

from nopad.bench.forecast.concrete_graph import open_graph
from nopad.bench.forecast.count_architecture import count_architecture
from nopad.bench.forecast.count_graph import count_graph
from nopad.bench.forecast.groups import Shape, total_bytes, total_flops
from nopad.export.graph.onnx import export_graph
from nopad.export.int8.linear_layers import linear_layers
from nopad.export.int8.qdq import insert_qdq
from nopad.model.checkpoint.load import load_checkpoint
from nopad.runtime.bundle import DEFAULT_BUNDLE, open_bundle
from nopad.runtime.planning.cost_model import cost_model

ARCHITECTURE = open_bundle(DEFAULT_BUNDLE).manifest.architecture
RAGGED = Shape(tokens=1472, sequences=64, longest=53)
LONG = Shape(tokens=1024, sequences=1, longest=1024)


@pytest.mark.parametrize("shape", [RAGGED, LONG])
def test_graph_architecture_and_cost_model_count_the_same_work(graph: Path, shape: Shape) -> None:
    groups = count_graph(open_graph(graph), shape, precision="fp16")
    described = count_architecture(ARCHITECTURE, shape, precision="fp16")
    planned = cost_model(ARCHITECTURE).work(shape.tokens, shape.sequences, shape.longest)
    # The graph has the head beside the encoder: two products with a row for each sequence.
    head = 2 * shape.sequences * 128 * (128 + 2)
    assert total_flops(groups) - head == pytest.approx(planned, rel=1e-9)
    assert total_flops(described) == pytest.approx(planned, rel=1e-9)
    assert total_bytes(groups) == pytest.approx(total_bytes(described), rel=0.03)
    kinds = [group.kind for group in groups]
    assert kinds.count("attention") == 4 and kinds.count("product") == 4 * 4 + 2


def test_a_bert_graph_is_counted_too(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    encoder = load_checkpoint(checkpoint("bert-single"), **CASES["bert-single"].load).encoder
    export_graph(encoder, tmp_path / "bert.onnx")
    groups = count_graph(open_graph(tmp_path / "bert.onnx"), RAGGED, precision="fp16")
    planned = cost_model(encoder.encoder_config).work(RAGGED.tokens, RAGGED.sequences, RAGGED.longest)
    assert total_flops(groups) == pytest.approx(planned, rel=0.002)  # the head is 0.13 % of it
    # GELU and bias end in their product: what the intermediate layer leaves is read by the next product alone.
    (between,) = [group for group in groups if group.name.startswith("bert.encoder.layer.0.intermediate")]
    assert between.bytes == 2 * (RAGGED.tokens * 64 + 64 * 128 + RAGGED.tokens * 128)


def test_scores_of_attention_never_reach_memory(graph: Path) -> None:
    groups = count_graph(open_graph(graph), LONG, precision="fp16")
    whole, last = [group for group in groups if group.kind == "attention" and group.columns == 1024]
    assert (whole.flops, whole.bytes) == (last.flops, last.bytes)
    heads, size = ARCHITECTURE["num_heads"], 128 // ARCHITECTURE["num_heads"]
    assert whole.flops == 4 * heads * 1024 * 1024 * size
    assert whole.bytes == 2 * 4 * 1024 * 128 + 4 * 1024 / 2  # q, k, v, output, and a mask of one row, as fp16


def test_a_graph_in_fp32_is_counted_as_its_half_precision_export(graph: Path, half_graph: Path) -> None:
    for shape in (RAGGED, LONG):
        pretended = count_graph(open_graph(graph), shape, precision="fp16")
        real = count_graph(open_graph(half_graph), shape, precision="fp16")
        assert total_flops(pretended) == total_flops(real)
        # Masks stay fp32 in the export, and are counted at half of that.
        assert total_bytes(pretended) == pytest.approx(total_bytes(real), rel=0.04)
        assert {group.precision for group in real} == {"fp16"}


def test_int8_products_are_read_from_a_graph_with_qdq_or_assumed(half_graph: Path, tmp_path: Path) -> None:
    model = onnx.load(str(half_graph))
    layers = linear_layers(model)
    kept, chosen = layers[0], layers[1:]
    scales = {tensor: np.float16(0.05) for node in model.graph.node for tensor in node.output}
    insert_qdq(model, chosen, scales)
    onnx.save(model, str(tmp_path / "int8.onnx"))
    quantized = open_graph(tmp_path / "int8.onnx")
    assert quantized.precision == "int8"
    real = count_graph(quantized, RAGGED, precision="int8")
    products = {group.name.rpartition("/")[0]: group.precision for group in real if group.kind == "product"}
    assert products[kept.module] == "fp16"
    assert sum(precision == "int8" for precision in products.values()) == len(chosen)
    assumed = count_graph(open_graph(half_graph), RAGGED, precision="int8")
    assert sum(group.precision == "int8" for group in assumed) == len(layers)
    assert total_bytes(assumed) == pytest.approx(total_bytes(real), rel=0.1)
    assert total_bytes(real) < total_bytes(count_graph(open_graph(half_graph), RAGGED, precision="fp16"))
