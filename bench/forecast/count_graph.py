"""The groups of a packed ONNX graph at one shape (`nopad.bench.forecast.groups` says what a group is, and why).

Imports onnx, so it is imported when a graph is counted and not before. Knows no GPU.
"""

from __future__ import annotations

import math
from dataclasses import replace

from nopad.bench.forecast.concrete_graph import ConcreteGraph, Graph, attribute
from nopad.bench.forecast.groups import WIDTHS, Group, Shape, attention, memory, product
from nopad.bench.forecast.units import PRODUCTS, Unit, find_units
from nopad.export.graph.node_names import in_layer

GATHERS = {"Gather", "GatherND", "GatherElements", "Slice"}
POINTWISE = {"Add", "Mul", "Sub", "Div", "Gelu", "Relu", "Tanh", "Erf", "Sigmoid", "Cast", "QuantizeLinear", "Clip"}


def count_graph(graph: Graph, shape: Shape, *, precision: str) -> tuple[Group, ...]:
    """Groups of `graph` at `shape`, in the order of the graph.

    A graph of another precision is counted as if it were exported in `precision`. Raises `UncountableError`.
    """
    float_precision = "fp16" if precision == "int8" else precision
    # An fp32 graph is counted as if it were exported in half precision; any other keeps the widths that it has.
    width = WIDTHS[float_precision] if graph.precision == "fp32" else None
    concrete = ConcreteGraph(graph, shape, width)
    return _Count(concrete, float_precision, quantize=precision == "int8" and graph.precision != "int8").groups()


class _Count:
    """The count of a graph. `float_precision`: of everything but int8; `quantize`: count it as if it had int8."""

    def __init__(self, graph: ConcreteGraph, float_precision: str, *, quantize: bool) -> None:
        self.graph, self.float_precision, self.quantize = graph, float_precision, quantize
        self.units = find_units(graph)
        regions = [unit for unit in self.units if unit.kind == "memory"]
        # The output of a product or attention -> the region that is its epilogue.
        self.epilogues = {name: region for region in regions if (name := self._epilogue_of(region)) is not None}

    def groups(self) -> tuple[Group, ...]:
        count = {"product": self._product, "attention": self._attention, "memory": self._memory}
        finishing = set(self.epilogues.values())
        groups = [count[unit.kind](unit) for unit in self.units if unit not in finishing]
        return tuple(group for group in groups if group is not None)

    def _edges(self, region: Unit) -> tuple[dict[str, float], list[str]]:
        """The inputs of a region (tensor -> bytes), and its outputs: tensors that operators outside it use."""
        graph = self.graph
        inner = {name for node in region.nodes for name in node.output}
        inside = {id(node) for node in region.nodes}
        reads: dict[str, float] = {}
        for node in region.nodes:
            for name in map(graph.tensor, node.input):
                if name and name not in inner and graph.is_known(name):
                    amount = graph.bytes(name)
                    if node.op_type in GATHERS:
                        amount = min(amount, sum(map(graph.bytes, node.output)))
                    reads[name] = min(graph.bytes(name), reads.get(name, 0.0) + amount)
        writes = [
            name for name in inner if name in graph.outputs or any(id(user) not in inside for user in graph.users[name])
        ]
        return reads, sorted(writes)

    def _epilogue_of(self, region: Unit) -> str | None:
        """The product's or attention's output of which this region is the epilogue; None if it is not, or not only."""
        graph = self.graph
        reads, writes = self._edges(region)
        inputs = [name for name in reads if name not in graph.constant]
        if len(inputs) != 1 or len(writes) != 1 or inputs[0] not in graph.producer or inputs[0] in graph.outputs:
            return None
        inside = {id(node) for node in region.nodes}
        if any(id(user) not in inside for user in graph.users[inputs[0]]):
            return None
        source = graph.producer[inputs[0]]
        if source.op_type not in PRODUCTS:
            return None
        weighted = any(graph.is_constant(name) for name in source.input[:2])
        allowed = POINTWISE if weighted else {"Transpose", "QuantizeLinear", "Cast"}
        same = math.prod(graph.sizes(inputs[0])) == math.prod(graph.sizes(writes[0]))
        return inputs[0] if same and {node.op_type for node in region.nodes} <= allowed else None

    def _memory(self, region: Unit) -> Group | None:
        reads, writes = self._edges(region)
        if not writes:
            return None
        moved = sum(reads.values()) + sum(map(self._stored_bytes, writes))
        return memory(moved, precision=self.float_precision, kernels=len(writes), name=region.nodes[0].name)

    def _stored_bytes(self, name: str) -> float:
        """Bytes of a tensor in memory: in int8 where only products with weights read it."""
        graph = self.graph
        for_products = graph.users[name] and all(
            user.op_type in PRODUCTS and any(map(graph.is_constant, user.input[:2])) for user in graph.users[name]
        )
        return graph.bytes(name) / (2 if self.quantize and for_products and name not in graph.outputs else 1)

    def _output_bytes(self, name: str) -> float:
        """Bytes that a product or attention writes to memory, after its epilogue."""
        return self._stored_bytes(self._edges(self.epilogues[name])[1][0] if name in self.epilogues else name)

    def _product(self, unit: Unit) -> Group:
        graph, (node,) = self.graph, unit.nodes
        left, right = (graph.sizes(name) for name in node.input[:2])
        out = graph.sizes(node.output[0])
        if attribute(node, "transA"):
            left = left[::-1]
        weighted = any(map(graph.is_constant, node.input[:2]))
        quantized = all(name in graph.dequantized for name in node.input[:2])
        assumed = weighted and self.quantize and in_layer(node.name)
        precision = "int8" if quantized or assumed else self.float_precision
        rows, columns, inner = out[-2] if len(out) > 1 else 1, out[-1], left[-1]
        batch = math.prod(out[:-2])
        if weighted and len(right) == 2:  # one weight for all: the batch is more rows
            rows, batch = rows * batch, 1
        group = product(rows, columns, inner, precision=precision, width=0, batch=batch, name=node.name)
        return replace(group, bytes=group.bytes + self._output_bytes(node.output[0]))

    def _attention(self, unit: Unit) -> Group:
        graph, first, last = self.graph, unit.nodes[0], unit.nodes[-1]
        scores, queries = graph.sizes(first.output[0]), graph.sizes(first.input[0])
        inner = {name for node in unit.nodes for name in node.output}
        masks = {
            graph.tensor(name)
            for node in unit.nodes[1:-1]
            for name in node.input
            if graph.tensor(name) not in inner and not graph.is_constant(name)
        }
        group = attention(
            math.prod(scores[:-2]),
            scores[-2],
            scores[-1],
            queries[-1],
            precision=self.float_precision,
            mask_bytes=sum(map(graph.bytes, masks)),
            name=first.name,
        )
        out = last.output[0]
        return replace(group, bytes=group.bytes - graph.bytes(out) + self._output_bytes(out))
