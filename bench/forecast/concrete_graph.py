"""A packed ONNX graph: read without its weights, then with every shape known. Knows no operator's work and no GPU.

Imports onnx, so it is imported when a graph is counted and not before.
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper, shape_inference
from onnx.reference import ReferenceEvaluator

from nopad.bench.forecast.groups import Shape, UncountableError

SMALL = 16  # most elements of a tensor that is folded: sizes and shapes have no more
MOST_KEPT = 4096  # most elements of an initializer that keeps its values
DIMENSIONS = {"tokens", "sequences", "longest"}
FLOATS = {TensorProto.FLOAT: 4, TensorProto.FLOAT16: 2, TensorProto.BFLOAT16: 2}
OTHERS = {TensorProto.INT64: 8, TensorProto.INT32: 4, TensorProto.BOOL: 1, TensorProto.INT8: 1, TensorProto.UINT8: 1}
VIEWS = {"Reshape", "Unsqueeze", "Squeeze", "Identity", "Flatten", "DequantizeLinear"}
UNKNOWN_PRODUCTS = {
    "MatMulInteger",
    "QLinearMatMul",
    "ConvInteger",
    "Conv",
    "Einsum",
    "Attention",
    "Loop",
    "If",
    "Scan",
}


@dataclass(frozen=True, kw_only=True)
class Graph:
    """A packed graph without its weights, and its precision."""

    model: ModelProto
    precision: str


def open_graph(path: Path) -> Graph:
    """Read the graph at `path`; its weights are dropped, their shapes kept.

    Raises `UncountableError` if it is not the packed graph that `nopad.export.graph.onnx` writes for GPUs.
    """
    model = onnx.load(str(path), load_external_data=False)
    graph = model.graph
    dimensions = {d.dim_param for value in graph.input for d in value.type.tensor_type.shape.dim}
    if not {"tokens", "sequences", "longest"} <= dimensions or not dimensions - {""} <= DIMENSIONS:
        raise UncountableError(f"{path.name} does not have the inputs of a packed graph")
    foreign = {
        node.op_type for node in graph.node if node.domain not in ("", "ai.onnx") or node.op_type in UNKNOWN_PRODUCTS
    }
    if foreign:
        raise UncountableError(f"{path.name} has operators whose work is not known: {', '.join(sorted(foreign))}")
    kept, weights, types = [], [], set()
    for tensor in graph.initializer:
        types.add(tensor.data_type)
        external = tensor.data_location == TensorProto.EXTERNAL
        sizes = math.prod(tensor.dims) <= MOST_KEPT and tensor.data_type == TensorProto.INT64
        if not external and (sizes or not tensor.dims):
            kept.append(tensor)
        else:
            weights.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
    del graph.initializer[:], graph.value_info[:]
    graph.initializer.extend(kept)
    graph.input.extend(weights)  # shape inference takes them for inputs of known shape
    model.metadata_props.add(key="weights", value="\n".join(value.name for value in weights))
    quantized = any(node.op_type == "QuantizeLinear" for node in graph.node)
    half = {TensorProto.FLOAT16: "fp16", TensorProto.BFLOAT16: "bf16"}
    halves = [name for kind, name in half.items() if kind in types]
    return Graph(model=model, precision="int8" if quantized else halves[0] if halves else "fp32")


class ConcreteGraph:
    """A graph at one shape: its operators, and the sizes of its tensors. A view counts as the tensor behind it.

    `float_width`: bytes of an element of every floating-point tensor; None for those of its type.
    """

    def __init__(self, graph: Graph, shape: Shape, float_width: int | None) -> None:
        model = _at_shape(graph.model, shape)
        self._float_width = float_width
        self._values = {
            value.name: value.type.tensor_type
            for value in [*model.graph.value_info, *model.graph.input, *model.graph.output]
        }
        for tensor in model.graph.initializer:
            value = helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
            self._values.setdefault(tensor.name, value.type.tensor_type)
        weights = next(entry.value for entry in model.metadata_props if entry.key == "weights")
        self.constant = {*weights.split("\n"), *(tensor.name for tensor in model.graph.initializer), ""}
        self.nodes: list[NodeProto] = []
        self._behind_view: dict[str, str] = {}
        for node in model.graph.node:
            if all(name in self.constant for name in node.input) and node.op_type != "Range":
                self.constant.update(node.output)  # weights on their way through Q, DQ, Cast, Transpose
            elif node.op_type in VIEWS:
                self._behind_view[node.output[0]] = self.tensor(node.input[0])
            else:
                self.nodes.append(node)
        self.dequantized = {node.output[0] for node in model.graph.node if node.op_type == "DequantizeLinear"}
        self.outputs = {self.tensor(value.name) for value in model.graph.output}
        self.producer = {name: node for node in self.nodes for name in node.output}
        self.users: defaultdict[str, list[NodeProto]] = defaultdict(list)
        for node in self.nodes:
            for name in {self.tensor(name) for name in node.input}:
                self.users[name].append(node)

    def tensor(self, name: str) -> str:
        """The tensor behind a view; any other name is returned as it is."""
        return self._behind_view.get(name, name)

    def is_constant(self, name: str) -> bool:
        """Whether a tensor is a weight, or computed from weights alone."""
        return self.tensor(name) in self.constant

    def producers(self, node: NodeProto) -> list[NodeProto]:
        """The operators whose outputs a node reads."""
        return [self.producer[self.tensor(name)] for name in node.input if self.tensor(name) in self.producer]

    def is_known(self, name: str) -> bool:
        """Whether the type and shape of a tensor were inferred."""
        return name in self._values

    def sizes(self, name: str) -> list[int]:
        """The shape of a tensor. Raises `UncountableError`."""
        dimensions = self._values[name].shape.dim if name in self._values else []
        if name not in self._values or not all(dimension.HasField("dim_value") for dimension in dimensions):
            raise UncountableError(f"the shape of {name} is not known")
        return [dimension.dim_value for dimension in dimensions]

    def bytes(self, name: str) -> float:
        """The size of a tensor in memory. Raises `UncountableError`."""
        name = self.tensor(name)
        kind = self._values[name].elem_type if name in self._values else None
        if kind in FLOATS:
            width = self._float_width or FLOATS[kind]
        elif kind in OTHERS:
            width = OTHERS[kind]
        else:
            raise UncountableError(f"the type of {name} is not known")
        return float(width * math.prod(self.sizes(name)))


def attribute(node: NodeProto, key: str) -> Any:
    """Value of an attribute; None where the node does not have it."""
    return next((helper.get_attribute_value(entry) for entry in node.attribute if entry.name == key), None)


def _at_shape(model: ModelProto, shape: Shape) -> ModelProto:
    """The model with every shape known: sizes are filled in, operators on them folded, the other shapes inferred."""
    sizes = {"tokens": shape.tokens, "sequences": shape.sequences, "longest": shape.longest}
    concrete = ModelProto()
    concrete.CopyFrom(model)
    for value in [*concrete.graph.input, *concrete.graph.output]:
        for dimension in value.type.tensor_type.shape.dim:
            if dimension.dim_param in sizes:
                dimension.dim_value = sizes[dimension.dim_param]
            elif dimension.dim_param:  # of an output: inferred anew
                dimension.Clear()
    _fold(concrete)
    return shape_inference.infer_shapes(concrete, data_prop=True)


def _fold(model: ModelProto) -> None:
    """Replace operators on small constants, and the shapes of inputs, by initializers with their values."""
    known: dict[str, Any] = {
        tensor.name: numpy_helper.to_array(tensor)
        for tensor in model.graph.initializer
        if math.prod(tensor.dims) <= SMALL
    }
    shapes = {value.name: [d.dim_value for d in value.type.tensor_type.shape.dim] for value in model.graph.input}
    opsets = {entry.domain: entry.version for entry in model.opset_import}
    remaining = []
    for node in list(model.graph.node):
        names = [name for name in node.input if name]
        result: Any = None
        if node.op_type == "Shape" and names[0] in shapes:
            first, last = (attribute(node, key) for key in ("start", "end"))
            result = np.array(shapes[names[0]][first:last], dtype=np.int64)
        elif names and all(name in known for name in names) and node.op_type != "Range" and len(node.output) == 1:
            (result,) = ReferenceEvaluator(node, opsets=opsets).run(None, {name: known[name] for name in names})
        if getattr(result, "size", SMALL + 1) > SMALL:
            remaining.append(node)
            continue
        known[node.output[0]] = result
        model.graph.initializer.append(numpy_helper.from_array(result, node.output[0]))
    del model.graph.node[:]
    model.graph.node.extend(remaining)
