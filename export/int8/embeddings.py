"""Token embeddings in 8 bits: the largest table of most encoders at a quarter of its size.

Each row has a scale of its own, so that a rare token keeps its precision beside one with an outlier. Only rows that a
text asks for are read and multiplied out. Knows neither layers nor activations.
"""

from __future__ import annotations

from collections import defaultdict

import onnx
from onnx import TensorProto, helper, numpy_helper

from nopad.export.int8.linear_layers import drop_unread, names_read
from nopad.export.int8.scales import quantize_weight

LEAST = 1 << 20  # bytes of a table that is worth three more operators: not those of positions and of token types


def round_embeddings(model: onnx.ModelProto, least: int = LEAST) -> int:
    """Store fp32 tables of `least` bytes that are only looked up in as int8 with a scale for each row, in place.

    A table that a product reads as well (the decoder of fill-mask, tied to the embeddings) stays as it is: it would be
    stored twice. Returns the number of tables.
    """
    graph = model.graph
    tables = {
        tensor.name: tensor
        for tensor in graph.initializer
        if tensor.data_type == TensorProto.FLOAT
        and len(tensor.dims) == 2
        and 4 * tensor.dims[0] * tensor.dims[1] >= least
    }
    lookups: dict[str, list[onnx.NodeProto]] = defaultdict(list)
    others: set[str] = {value.name for value in graph.output}
    for node in graph.node:
        if node.op_type == "Gather" and node.input[0] in tables and _by_row(node):
            lookups[node.input[0]].append(node)
        else:
            others |= names_read(node)
    chosen = {name: nodes for name, nodes in lookups.items() if name not in others}
    rows: dict[str, tuple[str, str]] = {}
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        table = node.input[0] if node.input else ""
        if table not in chosen or node not in chosen[table]:
            nodes.append(node)
            continue
        if table not in rows:
            values, scales = quantize_weight(numpy_helper.to_array(tables[table]), 0)
            rows[table] = f"{table}:int8", f"{table}:int8:scale"
            graph.initializer.append(numpy_helper.from_array(values, rows[table][0]))
            graph.initializer.append(numpy_helper.from_array(scales.reshape(-1, 1), rows[table][1]))
        nodes += _lookup(node, *rows[table])
    del graph.node[:]
    graph.node.extend(nodes)
    drop_unread(graph)
    return len(chosen)


def _by_row(node: onnx.NodeProto) -> bool:
    return all(helper.get_attribute_value(a) == 0 for a in node.attribute if a.name == "axis")


def _lookup(node: onnx.NodeProto, values: str, scales: str) -> list[onnx.NodeProto]:
    """The rows of `node` in int8, and their scales, multiplied: with ids of any shape."""
    ids, output, name = node.input[1], node.output[0], f"{node.name}/int8"
    return [
        helper.make_node("Gather", [values, ids], [f"{output}:int8"], f"{name}/Gather"),
        helper.make_node("Gather", [scales, ids], [f"{output}:scale"], f"{name}/Gather_1"),
        helper.make_node("Cast", [f"{output}:int8"], [f"{output}:cast"], f"{name}/Cast", to=TensorProto.FLOAT),
        helper.make_node("Mul", [f"{output}:cast", f"{output}:scale"], [output], f"{name}/Mul"),
    ]
