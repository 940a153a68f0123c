"""Weights of an fp32 graph stored in bf16, for a library that computes with them in its own precision.

The graph stays fp32: each matrix is followed by the operator that widens it, which OpenVINO folds into its products,
and any other ONNX library into the weights when it opens the file. Which matrices: the policy of
`nopad.export.graph.precision`, so norms, biases and (for classifiers) the head are fp32.
"""

from __future__ import annotations

from typing import Literal, get_args

import ml_dtypes
import onnx_ir as ir

from nopad.export.graph.node_names import in_layer, is_decoder
from nopad.export.graph.precision import POLICIES
from nopad.export.graph.rewrite import initializer

Role = Literal["embeddings", "layers", "decoder", "head"]
_BF16 = {role for role in get_args(Role) if getattr(POLICIES["bf16"], role) == "bf16"}


def store_bf16(graph: ir.Graph, *, read_by: Role | None = None) -> None:
    """Store the matrices of an fp32 `graph` (its nodes named by `node_names`) in bf16, in place.

    Those that the policy has in bf16; with `read_by`, of these only what such a part reads.
    """
    for value in list(graph.initializers.values()):
        roles = _roles(value)
        if roles <= _BF16 and (read_by in roles if read_by else roles):
            _store(graph, value)


def _roles(value: ir.Value) -> set[Role]:
    """What reads an fp32 matrix; empty for anything else."""
    tensor = value.const_value
    if tensor is None or tensor.dtype != ir.DataType.FLOAT or len(tensor.shape) != 2:
        return set()
    return {_role(node, index) for node, index in value.uses()}


def _role(node: ir.Node, index: int) -> Role:
    name = node.name or ""
    if node.op_type == "Gather" and index == 0:
        return "embeddings"
    if node.op_type in ("Gemm", "MatMul") and index == 1:
        return "layers" if in_layer(name) else "decoder" if is_decoder(name) else "head"
    return "head"


def _store(graph: ir.Graph, value: ir.Value) -> None:
    """Cast(bf16 matrix), and behind a Gather of rows rather than before it: a table is never widened as a whole."""
    assert value.const_value is not None
    stored = initializer(graph, f"{value.name}.bf16", value.const_value.numpy().astype(ml_dtypes.bfloat16))
    widened: ir.Value | None = None
    for node, index in list(value.uses()):
        node.replace_input_with(index, stored)
        if _role(node, index) == "embeddings":
            rows = node.outputs[0]
            readers = list(rows.uses())
            rows.type = ir.TensorType(ir.DataType.BFLOAT16)
            cast = _widening(rows, f"{node.name}/Cast", f"{rows.name}/Cast")
            graph.insert_after(node, cast)
            for reader, place in readers:
                reader.replace_input_with(place, cast.outputs[0])
        else:
            if widened is None:
                cast = _widening(stored, f"{value.name}/Cast", f"{value.name}.fp32")
                graph.insert_before(next(iter(graph)), cast)
                widened = cast.outputs[0]
            node.replace_input_with(index, widened)
    del graph.initializers[value.name or ""]


def _widening(value: ir.Value, name: str, output: str) -> ir.Node:
    cast = ir.node("Cast", [value], {"to": int(ir.DataType.FLOAT)}, name=name)
    result = cast.outputs[0]
    result.name, result.shape, result.type = output, value.shape, ir.TensorType(ir.DataType.FLOAT)
    return cast
