"""A packed ONNX graph at concrete shapes -> groups of operators (`nopad.bench.forecast.groups` says which, and why).

Imports onnx, so it is imported when a graph is counted and not before. Knows no GPU.
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper, shape_inference
from onnx.reference import ReferenceEvaluator

from nopad.bench.forecast.groups import WIDTHS, Graph, Group, Shape, UncountableError, attention, memory, product
from nopad.export.graph.node_names import in_layer

SMALL = 16  # elements of a tensor that is folded: sizes and shapes are no larger
KEPT = 4096  # elements of an initializer that is kept with its values
DIMENSIONS = {"tokens", "sequences", "longest"}
FLOATS = {TensorProto.FLOAT: 4, TensorProto.FLOAT16: 2, TensorProto.BFLOAT16: 2}
OTHERS = {TensorProto.INT64: 8, TensorProto.INT32: 4, TensorProto.BOOL: 1, TensorProto.INT8: 1, TensorProto.UINT8: 1}
VIEWS = {"Reshape", "Unsqueeze", "Squeeze", "Identity", "Flatten", "DequantizeLinear"}
GATHERS = {"Gather", "GatherND", "GatherElements", "Slice"}
POINTWISE = {"Add", "Mul", "Sub", "Div", "Gelu", "Relu", "Tanh", "Erf", "Sigmoid", "Cast", "QuantizeLinear", "Clip"}
BETWEEN_SCORES = {"Add", "Mul", "Div", "Where", "Cast"}  # between the two products of attention, beside Softmax
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


def open_graph(path: Path) -> Graph:
    """See `nopad.bench.forecast.groups.open_graph`."""
    model = onnx.load(str(path), load_external_data=False)
    graph = model.graph
    dimensions = {d.dim_param for value in graph.input for d in value.type.tensor_type.shape.dim}
    if not {"tokens", "sequences", "longest"} <= dimensions or not dimensions - {""} <= DIMENSIONS:
        raise UncountableError(f"{path.name} has not the inputs of a packed graph")
    foreign = {
        node.op_type for node in graph.node if node.domain not in ("", "ai.onnx") or node.op_type in UNKNOWN_PRODUCTS
    }
    if foreign:
        raise UncountableError(f"{path.name} has operators whose work is not known: {', '.join(sorted(foreign))}")
    kept, weights, types = [], [], set()
    for tensor in graph.initializer:
        types.add(tensor.data_type)
        external = tensor.data_location == TensorProto.EXTERNAL
        sizes = math.prod(tensor.dims) <= KEPT and tensor.data_type == TensorProto.INT64
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
    found = [name for kind, name in half.items() if kind in types]
    return Graph(model=model, precision="int8" if quantized else found[0] if found else "fp32")


def count_graph(graph: Graph, shape: Shape, precision: str) -> tuple[Group, ...]:
    """See `nopad.bench.forecast.groups.count_graph`."""
    return _Count(_at(graph.model, shape), graph.precision, precision).groups()


def _at(model: ModelProto, shape: Shape) -> ModelProto:
    """The model with every shape known."""
    sizes = {"tokens": shape.tokens, "sequences": shape.sequences, "longest": shape.longest}
    concrete = ModelProto()
    concrete.CopyFrom(model)
    known: dict[str, Any] = {}  # small constants
    for value in [*concrete.graph.input, *concrete.graph.output]:
        for dimension in value.type.tensor_type.shape.dim:
            if dimension.dim_param in sizes:
                dimension.dim_value = sizes[dimension.dim_param]
            elif dimension.dim_param:  # of an output: inferred anew
                dimension.Clear()
    for tensor in concrete.graph.initializer:
        if math.prod(tensor.dims) <= SMALL:
            known[tensor.name] = numpy_helper.to_array(tensor)
    shapes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in concrete.graph.input}
    nodes = list(concrete.graph.node)
    opsets = {entry.domain: entry.version for entry in concrete.opset_import}
    left = []
    for node in nodes:
        names = [name for name in node.input if name]
        if node.op_type == "Shape" and names[0] in shapes:
            first, last = (_attribute(node, key) for key in ("start", "end"))
            known[node.output[0]] = np.array(shapes[names[0]][first:last], dtype=np.int64)
        elif names and all(name in known for name in names) and node.op_type != "Range" and len(node.output) == 1:
            feeds = {name: known[name] for name in names}
            (found,) = ReferenceEvaluator(node, opsets=opsets).run(None, feeds)
            if getattr(found, "size", SMALL + 1) > SMALL:
                left.append(node)
                continue
            known[node.output[0]] = found
        else:
            left.append(node)
            continue
        concrete.graph.initializer.append(numpy_helper.from_array(known[node.output[0]], node.output[0]))
    del concrete.graph.node[:]
    concrete.graph.node.extend(left)
    return shape_inference.infer_shapes(concrete, data_prop=True)


def _attribute(node: NodeProto, key: str) -> Any:
    """Value of an attribute, None where the node has none of that name."""
    return next((helper.get_attribute_value(one) for one in node.attribute if one.name == key), None)


@dataclass
class _Unit:
    """Nodes that make one group."""

    kind: str  # product, attention, memory
    nodes: list[NodeProto] = field(default_factory=list)
    last: int = 0  # place of its last node in the graph
    stage: int = 0  # products and attentions before it, on the longest way


class _Count:
    """The state of one count; `groups` is its result."""

    def __init__(self, model: ModelProto, own: str, precision: str) -> None:
        graph = model.graph
        self.precision = precision
        self.around = "fp16" if precision == "int8" else precision
        # A graph in fp32 is counted as if it were exported in half precision. int8 stands in a graph as it is.
        self.float_width = WIDTHS[self.around] if own == "fp32" else None
        self.quantize = precision == "int8" and own != "int8"
        self.values = {v.name: v.type.tensor_type for v in [*graph.value_info, *graph.input, *graph.output]}
        self.outputs = {value.name for value in graph.output}
        weights = next(entry.value for entry in model.metadata_props if entry.key == "weights")
        self.constant = {*weights.split("\n"), *(tensor.name for tensor in graph.initializer), ""}
        for tensor in graph.initializer:
            value = helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
            self.values.setdefault(tensor.name, value.type.tensor_type)
        self.nodes: list[NodeProto] = []
        self.alias: dict[str, str] = {}
        for node in graph.node:
            if all(name in self.constant for name in node.input) and node.op_type != "Range":
                self.constant.update(node.output)  # weights on their way through Q, DQ, Cast, Transpose
            elif node.op_type in VIEWS:
                self.alias[node.output[0]] = self.of(node.input[0])
            else:
                self.nodes.append(node)
        self.quantized = {node.output[0] for node in graph.node if node.op_type == "DequantizeLinear"}
        self.outputs = {self.of(name) for name in self.outputs}
        self.maker = {name: node for node in self.nodes for name in node.output}
        self.users: defaultdict[str, list[NodeProto]] = defaultdict(list)
        for node in self.nodes:
            for name in {self.of(name) for name in node.input}:
                self.users[name].append(node)

    def of(self, name: str) -> str:
        """The tensor that a view looks at."""
        return self.alias.get(name, name)

    def sizes(self, name: str) -> list[int]:
        if name not in self.values:
            raise UncountableError(f"the shape of {name} is not known")
        dimensions = self.values[name].shape.dim
        if not all(dimension.HasField("dim_value") for dimension in dimensions):
            raise UncountableError(f"the shape of {name} is not known")
        return [dimension.dim_value for dimension in dimensions]

    def bytes_of(self, name: str) -> float:
        name = self.of(name)
        kind = self.values[name].elem_type if name in self.values else None
        if kind in FLOATS:
            width = self.float_width or FLOATS[kind]
        elif kind in OTHERS:
            width = OTHERS[kind]
        else:
            raise UncountableError(f"the type of {name} is not known")
        return float(width * math.prod(self.sizes(name)))

    def groups(self) -> tuple[Group, ...]:
        units = self._units()
        stage: dict[str, int] = {}
        for unit in sorted(units, key=lambda unit: unit.last):
            made = {name for node in unit.nodes for name in node.output}
            read = {self.of(name) for node in unit.nodes for name in node.input} - made - self.constant
            unit.stage = max((stage.get(name, 0) for name in read), default=0)
            for name in made:
                stage[name] = unit.stage + (unit.kind != "memory")
        found: list[tuple[int, Group]] = []
        regions = self._regions([unit for unit in units if unit.kind == "memory"])
        epilogues: dict[str, _Unit] = {}
        for region in regions:
            source = self._epilogue_of(region)
            if source:
                epilogues[source] = region
            elif (group := self._memory(region)) is not None:
                found.append((region.last, group))
        for unit in units:
            if unit.kind == "product":
                found.append((unit.last, self._product(unit, epilogues)))
            elif unit.kind == "attention":
                found.append((unit.last, self._attention(unit, epilogues)))
        return tuple(group for _, group in sorted(found, key=lambda one: one[0]))

    def _units(self) -> list[_Unit]:
        place = {id(node): index for index, node in enumerate(self.nodes)}
        units: list[_Unit] = []
        taken: set[int] = set()
        for node in self.nodes:
            if node.op_type == "Softmax" and (chain := self._scores(node)):
                units.append(_Unit(kind="attention", nodes=chain, last=max(place[id(one)] for one in chain)))
                taken.update(id(one) for one in chain)
        for node in self.nodes:
            if id(node) not in taken:
                kind = "product" if node.op_type in ("MatMul", "Gemm") else "memory"
                units.append(_Unit(kind=kind, nodes=[node], last=place[id(node)]))
        return units

    def _scores(self, softmax: NodeProto) -> list[NodeProto] | None:
        """MatMul ... Softmax ... MatMul, if it is that."""
        chain = [softmax]
        node = softmax
        while node.op_type != "MatMul":
            before = [self.maker[self.of(name)] for name in node.input if self.of(name) in self.maker]
            wanted = [one for one in before if one.op_type in BETWEEN_SCORES | {"MatMul"} and self._leads(one)]
            if len(wanted) != 1:
                return None
            node = wanted[0]
            chain.insert(0, node)
        node = softmax
        while node.op_type != "MatMul" or node is chain[0]:
            after = self.users[node.output[0]]
            if len(after) != 1 or after[0].op_type not in BETWEEN_SCORES | {"MatMul"}:
                return None
            node = after[0]
            chain.append(node)
        return chain

    def _leads(self, node: NodeProto) -> bool:
        """Whether a product of two activations is behind `node`, so that it carries scores and no mask."""
        while node.op_type != "MatMul":
            before = [self.maker[self.of(name)] for name in node.input if self.of(name) in self.maker]
            before = [one for one in before if one.op_type in BETWEEN_SCORES | {"MatMul"}]
            if not before:
                return False
            node = before[0]
        return not any(self.of(name) in self.constant for name in node.input)

    def _regions(self, units: list[_Unit]) -> list[_Unit]:
        """Memory operators of one stage that touch, joined."""
        home: dict[str, int] = {}  # tensor -> unit
        parent = list(range(len(units)))

        def root(index: int) -> int:
            while parent[index] != index:
                index = parent[index]
            return index

        for index, unit in enumerate(units):
            for name in unit.nodes[0].output:
                home[name] = index
        for index, unit in enumerate(units):
            for name in unit.nodes[0].input:
                other = home.get(self.of(name))
                if other is not None and units[other].stage == unit.stage:
                    parent[root(index)] = root(other)
        joined: dict[int, _Unit] = {}
        for index, unit in enumerate(units):
            region = joined.setdefault(root(index), _Unit(kind="memory", stage=unit.stage))
            region.nodes.append(unit.nodes[0])
            region.last = max(region.last, unit.last)
        return list(joined.values())

    def _edges(self, region: _Unit) -> tuple[dict[str, float], list[str]]:
        """What a region reads (tensor -> bytes) and which of its tensors others use."""
        made = {name for node in region.nodes for name in node.output}
        inside = {id(node) for node in region.nodes}
        reads: dict[str, float] = {}
        for node in region.nodes:
            for name in map(self.of, node.input):
                if name and name not in made and name in self.values:
                    amount = self.bytes_of(name)
                    if node.op_type in GATHERS:
                        amount = min(amount, sum(map(self.bytes_of, node.output)))
                    reads[name] = min(self.bytes_of(name), reads.get(name, 0.0) + amount)
        writes = [
            name for name in made if name in self.outputs or any(id(user) not in inside for user in self.users[name])
        ]
        return reads, sorted(writes)

    def _epilogue_of(self, region: _Unit) -> str | None:
        """The product's or attention's output that this region finishes on its way to memory, if it is that alone."""
        reads, writes = self._edges(region)
        inputs = [name for name in reads if name not in self.constant]
        if len(inputs) != 1 or len(writes) != 1 or inputs[0] not in self.maker or inputs[0] in self.outputs:
            return None
        inside = {id(node) for node in region.nodes}
        if any(id(user) not in inside for user in self.users[inputs[0]]):
            return None
        source = self.maker[inputs[0]]
        if source.op_type not in ("MatMul", "Gemm"):
            return None
        ops = {node.op_type for node in region.nodes}
        both = [name for name in source.input[:2] if self.of(name) not in self.constant]
        allowed = POINTWISE if len(both) == 1 else {"Transpose", "QuantizeLinear", "Cast"}
        same = math.prod(self.sizes(inputs[0])) == math.prod(self.sizes(writes[0]))
        return inputs[0] if same and ops <= allowed else None

    def _memory(self, region: _Unit) -> Group | None:
        reads, writes = self._edges(region)
        if not writes:
            return None
        moved = sum(reads.values()) + sum(map(self._left, writes))
        return memory(moved, precision=self.around, kernels=len(writes), name=region.nodes[0].name)

    def _left(self, name: str) -> float:
        """Bytes of a tensor as it is left in memory: in int8, where products with weights alone read it."""
        for_products = self.users[name] and all(
            user.op_type in ("MatMul", "Gemm") and any(self.of(one) in self.constant for one in user.input[:2])
            for user in self.users[name]
        )
        return self.bytes_of(name) / (2 if self.quantize and for_products and name not in self.outputs else 1)

    def _written(self, name: str, epilogues: dict[str, _Unit]) -> float:
        return self._left(self._edges(epilogues[name])[1][0] if name in epilogues else name)

    def _product(self, unit: _Unit, epilogues: dict[str, _Unit]) -> Group:
        (node,) = unit.nodes
        left, right = (self.sizes(name) for name in node.input[:2])
        out = self.sizes(node.output[0])
        if _attribute(node, "transA"):
            left = left[::-1]
        weighted = any(self.of(name) in self.constant for name in node.input[:2])
        precision = self.around
        quantized = all(name in self.quantized for name in node.input[:2])
        if quantized or (weighted and self.quantize and in_layer(node.name)):
            precision = "int8"
        rows, columns, inner = out[-2] if len(out) > 1 else 1, out[-1], left[-1]
        batch = math.prod(out[:-2])
        if weighted and len(right) == 2:  # one weight for all: the batch is more rows
            rows, batch = rows * batch, 1
        made = product(rows, columns, inner, precision=precision, width=0, batch=batch, name=node.name)
        written = self._written(node.output[0], epilogues)
        return replace(made, bytes=made.bytes + written)

    def _attention(self, unit: _Unit, epilogues: dict[str, _Unit]) -> Group:
        first, last = unit.nodes[0], unit.nodes[-1]
        scores, queries = self.sizes(first.output[0]), self.sizes(first.input[0])
        made = {name for node in unit.nodes for name in node.output}
        masks = {
            self.of(name)
            for node in unit.nodes[1:-1]
            for name in node.input
            if self.of(name) not in made and self.of(name) not in self.constant
        }
        group = attention(
            math.prod(scores[:-2]),
            scores[-2],
            scores[-1],
            queries[-1],
            precision=self.around,
            mask_bytes=sum(map(self.bytes_of, masks)),
            name=first.name,
        )
        out = self.bytes_of(last.output[0])
        return replace(group, bytes=group.bytes - out + self._written(last.output[0], epilogues))
