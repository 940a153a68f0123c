"""Rewriting a traced graph without changing what it computes: what the graphs for CPUs share. Knows no engine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir


def split_weights(graph: ir.Graph) -> None:
    """Products that are taken apart (q, k and v; the two halves of a gated MLP) become products of split weights."""
    for node in list(graph):
        if node.op_type == "Split":
            _split_weight(graph, node)


def drop_unread(graph: ir.Graph) -> None:
    """Remove the initializers that nothing reads any more."""
    for name, value in list(graph.initializers.items()):
        if not value.uses():
            del graph.initializers[name]


def _split_weight(graph: ir.Graph, node: ir.Node) -> None:
    """Split(Gemm(x, W)) -> Gemm(x, W_0), Gemm(x, W_1), ...: nothing is copied to take the product apart."""
    product = node.inputs[0].producer() if node.inputs[0] else None
    if product is None or product.op_type != "Gemm" or len(product.outputs[0].uses()) > 1:
        return
    parts = len(node.outputs)
    x, *constants = product.inputs
    slices = [[_slice(graph, value, index, parts) for value in constants if value] for index in range(parts)]
    replace(graph, node, [ir.node("Gemm", [x, *own], product.attributes) for own in slices], also=product)


def _slice(graph: ir.Graph, value: ir.Value, index: int, parts: int) -> ir.Value:
    """Rows of a Gemm's transposed weight, or of its bias."""
    assert value.const_value is not None
    array = np.split(value.const_value.numpy(), parts)[index]
    return initializer(graph, f"{value.name}.{index}", array)


def replace(graph: ir.Graph, old: ir.Node, new: Sequence[ir.Node], also: ir.Node | None = None) -> None:
    """Put `new` in the place of `old`, output for output, and drop `also`, which only `old` reads."""
    for node in new:
        node.metadata_props.update((also or old).metadata_props)  # they say which module it belongs to
    outputs = [value for node in new for value in node.outputs]
    removed = [old] if also is None else [old, also]
    ir.convenience.replace_nodes_and_values(graph, old, removed, new, old.outputs, outputs)


def constant(graph: ir.Graph, name: str, values: Sequence[int]) -> ir.Value:
    """The int64 initializer `name`, made if the graph does not have it yet."""
    return graph.initializers.get(name) or initializer(graph, name, np.array(values, dtype=np.int64))


def initializer(graph: ir.Graph, name: str, array: npt.NDArray[Any]) -> ir.Value:
    """A new initializer of the graph."""
    tensor = ir.tensor(np.ascontiguousarray(array), name=name)
    value = ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
    graph.register_initializer(value)
    return value
