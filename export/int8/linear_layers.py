"""The linear layers of a packed graph's encoder: the products that int8 quantizes. Knows onnx; runs nothing."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import onnx
from onnx import helper

from nopad.export.graph.node_names import in_layer, module_of


@dataclass(frozen=True, kw_only=True)
class LinearLayer:
    """One linear layer of the encoder, as it stands in the graph."""

    module: str  # model.layers.0.attn.Wqkv
    node: str
    activation: str  # the tensor it reads, [T, in]
    weight: str
    axis: int  # of the weight: its output channels


def linear_layers(model: onnx.ModelProto) -> list[LinearLayer]:
    """The layers that may be quantized: every `Gemm` or `MatMul` with a constant matrix inside a numbered layer.

    Attention products have no constant matrix; embeddings, pooler, heads and decoder stand outside the layers.
    One module may have several products: graphs for a CPU split the matrices of `Wqkv` and `Wi`.
    """
    constants = {tensor.name for tensor in model.graph.initializer if len(tensor.dims) == 2}
    return [
        LinearLayer(
            module=module_of(node.name),
            node=node.name,
            activation=node.input[0],
            weight=node.input[1],
            axis=0 if any(a.name == "transB" and a.i for a in node.attribute) else 1,
        )
        for node in model.graph.node
        if in_layer(node.name) and _is_product(node) and node.input[1] in constants
    ]


def _is_product(node: onnx.NodeProto) -> bool:
    """Whether it is x @ w (+ c), with nothing else in it."""
    plain = {"alpha": 1.0, "beta": 1.0, "transA": 0}
    values = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    return node.op_type == "MatMul" or (
        node.op_type == "Gemm" and all(values.get(name, value) == value for name, value in plain.items())
    )


def weight_type(model: onnx.ModelProto, layer: LinearLayer) -> int:
    """The element type of a layer's matrix, as `onnx.TensorProto` has it."""
    return next(tensor.data_type for tensor in model.graph.initializer if tensor.name == layer.weight)


def modules_of(layers: Iterable[LinearLayer]) -> tuple[str, ...]:
    """Each module once: some have several products."""
    return tuple(dict.fromkeys(layer.module for layer in layers))


def drop_unread(graph: onnx.GraphProto) -> None:
    """Remove the initializers that nothing reads any more."""
    read = {value.name for value in graph.output}.union(*map(names_read, graph.node))
    for index in reversed(range(len(graph.initializer))):
        if graph.initializer[index].name not in read:
            del graph.initializer[index]


def names_read(node: onnx.NodeProto) -> set[str]:
    """The names that a node reads, with those that its branches read and give."""
    names = {*node.input}
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            names |= {value.name for value in attribute.g.output}.union(*map(names_read, attribute.g.node))
    return names
