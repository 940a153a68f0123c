"""Which operators of a graph run together: attentions, matrix products, and regions of everything between them."""

from __future__ import annotations

from dataclasses import dataclass, field

from onnx import NodeProto

from nopad.bench.forecast.concrete_graph import ConcreteGraph
from nopad.bench.forecast.groups import Kind

PRODUCTS = ("MatMul", "Gemm")
BETWEEN_SCORES = {"Add", "Mul", "Div", "Where", "Cast"}  # between the two products of attention, beside Softmax


@dataclass(eq=False)
class Unit:
    """Operators that make one group."""

    kind: Kind
    nodes: list[NodeProto] = field(default_factory=list)
    last: int = 0  # index of its last operator in the graph
    stage: int = 0  # products and attentions before it, on the longest path


def find_units(graph: ConcreteGraph) -> list[Unit]:
    """Units that together hold every operator of the graph once, in the order of their last operators."""
    units = _attentions(graph)
    in_attention = {id(node) for unit in units for node in unit.nodes}
    for place, node in enumerate(graph.nodes):
        if id(node) not in in_attention:
            kind: Kind = "product" if node.op_type in PRODUCTS else "memory"
            units.append(Unit(kind=kind, nodes=[node], last=place))
    _set_stages(graph, units)
    regions = _join_regions(graph, [unit for unit in units if unit.kind == "memory"])
    return sorted([*(unit for unit in units if unit.kind != "memory"), *regions], key=lambda unit: unit.last)


def _attentions(graph: ConcreteGraph) -> list[Unit]:
    place = {id(node): index for index, node in enumerate(graph.nodes)}
    chains = [_attention_chain(graph, node) for node in graph.nodes if node.op_type == "Softmax"]
    return [
        Unit(kind="attention", nodes=chain, last=max(place[id(node)] for node in chain)) for chain in chains if chain
    ]


def _attention_chain(graph: ConcreteGraph, softmax: NodeProto) -> list[NodeProto] | None:
    """MatMul ... Softmax ... MatMul around `softmax`; None where it is not in such a chain."""
    chain = [softmax]
    node = softmax
    while node.op_type != "MatMul":
        before = [producer for producer in _score_producers(graph, node) if _carries_scores(graph, producer)]
        if len(before) != 1:
            return None
        node = before[0]
        chain.insert(0, node)
    node = softmax
    while node.op_type != "MatMul" or node is chain[0]:
        after = graph.users[node.output[0]]
        if len(after) != 1 or after[0].op_type not in BETWEEN_SCORES | {"MatMul"}:
            return None
        node = after[0]
        chain.append(node)
    return chain


def _score_producers(graph: ConcreteGraph, node: NodeProto) -> list[NodeProto]:
    return [producer for producer in graph.producers(node) if producer.op_type in BETWEEN_SCORES | {"MatMul"}]


def _carries_scores(graph: ConcreteGraph, node: NodeProto) -> bool:
    """Whether `node` comes from a product of two activations: then it carries scores, not a mask."""
    while node.op_type != "MatMul":
        before = _score_producers(graph, node)
        if not before:
            return False
        node = before[0]
    return not any(graph.is_constant(name) for name in node.input)


def _set_stages(graph: ConcreteGraph, units: list[Unit]) -> None:
    stages: dict[str, int] = {}  # of each tensor
    for unit in sorted(units, key=lambda unit: unit.last):
        written = {name for node in unit.nodes for name in node.output}
        read = {graph.tensor(name) for node in unit.nodes for name in node.input} - written - graph.constant
        unit.stage = max((stages.get(name, 0) for name in read), default=0)
        for name in written:
            stages[name] = unit.stage + (unit.kind != "memory")


def _join_regions(graph: ConcreteGraph, units: list[Unit]) -> list[Unit]:
    """Regions of single-operator units: neighbours of the same stage are joined."""
    home = {name: index for index, unit in enumerate(units) for name in unit.nodes[0].output}
    parent = list(range(len(units)))

    def root(index: int) -> int:
        while parent[index] != index:
            index = parent[index]
        return index

    for index, unit in enumerate(units):
        for name in unit.nodes[0].input:
            other = home.get(graph.tensor(name))
            if other is not None and units[other].stage == unit.stage:
                parent[root(index)] = root(other)
    regions: dict[int, Unit] = {}
    for index, unit in enumerate(units):
        region = regions.setdefault(root(index), Unit(kind="memory", stage=unit.stage))
        region.nodes.append(unit.nodes[0])
        region.last = max(region.last, unit.last)
    return list(regions.values())
