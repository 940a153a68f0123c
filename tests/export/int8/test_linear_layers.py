"""Which products of a graph are linear layers of the encoder."""

from __future__ import annotations

import numpy as np
import onnx
from int8_models import MODERNBERT, Graphs, layer_graph

from nopad.export.int8.linear_layers import linear_layers


def test_other_products_are_left_alone() -> None:
    weight = np.ones((4, 4), dtype=np.float32)
    for attributes in ({"alpha": 0.5}, {"transA": 1}):
        assert linear_layers(layer_graph("Gemm", weight, **attributes)) == []
    assert len(linear_layers(layer_graph("Gemm", weight, alpha=1.0))) == 1


def test_a_bare_encoder_has_its_layers_without_a_prefix(graph: Graphs) -> None:
    model = onnx.load(str(graph("embedded")))
    for node in model.graph.node:
        node.name = node.name.removeprefix("model.")
    assert [layer.module for layer in linear_layers(model)] == [
        f"layers.{i}.{part}" for i in range(4) for part in MODERNBERT
    ]
