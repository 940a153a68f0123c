"""Weights of an fp32 graph stored in fewer bits, for a library that computes with them in its own precision.

The graph stays fp32: each matrix is followed by the operator that widens it, which OpenVINO folds into its products,
and any other ONNX library into the weights when it opens the file. Which matrices: the policy of
`nopad.export.graph.precision`, so norms, biases and (for classifiers) the head are fp32.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from nopad.export.graph.node_names import in_layer, is_decoder, module_of
from nopad.export.graph.precision import POLICIES
from nopad.export.graph.rewrite import initializer
from nopad.runtime.engines.hardware import Precision

Role = Literal["embeddings", "layers", "decoder", "head"]
_INT8 = 127  # symmetric: -127..127


def store_weights(
    graph: ir.Graph, precision: Precision, rounded: Mapping[str, tuple[Any, Any]] | None = None
) -> tuple[str, ...]:
    """Store the matrices of an fp32 `graph` (its nodes named by `node_names`) in `precision`, in place.

    fp32: as they are. bf16: rounded to it. int8: the layers' matrices with a scale for each output channel, the
    embeddings with one for each row; a decoder, and embeddings that are tied to it, are bf16. `rounded`: int8 matrices
    by name, with their scales, that are not rounded to the nearest. Returns the modules whose products are int8.
    """
    assert precision in ("fp32", "bf16", "int8"), "half precision on CPUs is bf16"
    quantized: dict[str, None] = {}
    for value in list(graph.initializers.values()):
        roles = _roles(value)
        if precision == "int8" and roles == {"layers"}:
            quantized |= {module_of(node.name or ""): None for node, _ in value.uses()}
            _store_channels(graph, value, rounded or {})
        elif precision == "int8" and roles == {"embeddings"}:
            _store_rows(graph, value)
        elif precision != "fp32" and roles and all(getattr(POLICIES["bf16"], role) == "bf16" for role in roles):
            _store_bf16(graph, value)
    return tuple(quantized)


def depths(graph: ir.Graph) -> tuple[int, ...]:
    """The lengths of the sums in the products of the layers, each once: K of [T, K] x [K, N]."""
    found = set()
    for value in graph.initializers.values():
        if _roles(value) == {"layers"} and value.const_value is not None:
            found.add(value.const_value.numpy().shape[1 - _output_axis(value)])
    return tuple(sorted(found))


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


def _output_axis(value: ir.Value) -> int:
    """The axis of a product's matrix that its output channels are on."""
    node = next(iter(value.uses()))[0]
    transposed = node.attributes.get("transB")
    return 0 if transposed is not None and transposed.as_int() else 1


def _array(value: ir.Value) -> npt.NDArray[Any]:
    assert value.const_value is not None
    return value.const_value.numpy()


def _store_bf16(graph: ir.Graph, value: ir.Value) -> None:
    """Cast(bf16 matrix), and behind a Gather of rows rather than before it: a table is never widened as a whole."""
    stored = initializer(graph, f"{value.name}.bf16", _array(value).astype(ml_dtypes.bfloat16))
    widened: ir.Value | None = None
    for node, index in list(value.uses()):
        if _role(node, index) == "embeddings":
            node.replace_input_with(0, stored)
            _widen(graph, node, "Cast", {"to": int(ir.DataType.FLOAT)}, stored.dtype)
        else:
            if widened is None:
                cast = ir.node("Cast", [stored], {"to": int(ir.DataType.FLOAT)}, name=f"{value.name}/Cast")
                graph.insert_before(next(iter(graph)), cast)
                widened = _typed(cast.outputs[0], f"{value.name}.fp32", value.shape)
            node.replace_input_with(index, widened)
    del graph.initializers[value.name or ""]


def _store_channels(graph: ir.Graph, value: ir.Value, rounded: Mapping[str, tuple[Any, Any]]) -> None:
    """DequantizeLinear(int8 matrix, a scale for each output channel)."""
    axis = _output_axis(value)
    integers, scales = rounded.get(value.name or "") or _rounded(_array(value), 1 - axis)
    inputs = [initializer(graph, f"{value.name}.int8", integers)]
    inputs.append(initializer(graph, f"{value.name}.scale", scales.reshape(-1).astype(np.float32)))
    widen = ir.node("DequantizeLinear", inputs, {"axis": axis}, name=f"{value.name}/DequantizeLinear")
    graph.insert_before(next(iter(graph)), widen)
    result = _typed(widen.outputs[0], f"{value.name}.fp32", value.shape)
    for node, index in list(value.uses()):
        node.replace_input_with(index, result)
    del graph.initializers[value.name or ""]


def _store_rows(graph: ir.Graph, value: ir.Value) -> None:
    """Gather(int8 table) * Gather(scales): each row has a scale."""
    integers, scales = _rounded(_array(value), 1)
    table = initializer(graph, f"{value.name}.int8", integers)
    column = initializer(graph, f"{value.name}.scale", scales)
    for node, _ in list(value.uses()):
        ids = node.inputs[1]
        node.replace_input_with(0, table)
        cast = _widen(graph, node, "Cast", {"to": int(ir.DataType.FLOAT)}, table.dtype)
        own = ir.node("Gather", [column, ids], name=f"{node.name}/scale")
        _typed(own.outputs[0], f"{node.name}/scales", None)
        product = _widen(graph, cast, "Mul", {}, ir.DataType.FLOAT, own.outputs[0])
        graph.insert_before(product, own)
    del graph.initializers[value.name or ""]


def _widen(
    graph: ir.Graph, node: ir.Node, operator: str, attributes: dict[str, Any], dtype: Any, *more: ir.Value
) -> ir.Node:
    """Put `operator` behind `node`, whose result becomes one of `dtype`; its readers read the new result."""
    before = node.outputs[0]
    after = ir.node(operator, [before, *more], attributes, name=f"{node.name}/{operator}")
    result = _typed(after.outputs[0], f"{before.name}/{operator}", before.shape)
    for reader, index in list(before.uses()):
        if reader is not after:
            reader.replace_input_with(index, result)
    before.type = ir.TensorType(dtype)
    graph.insert_after(node, after)
    return after


def _typed(value: ir.Value, name: str, shape: ir.Shape | None) -> ir.Value:
    value.name, value.shape, value.type = name, shape, ir.TensorType(ir.DataType.FLOAT)
    return value


def _rounded(matrix: npt.NDArray[np.float32], axis: int) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """Integers -127..127 and their scales, one along `axis`; a channel of zeros has scale 1."""
    largest = np.abs(matrix).max(axis=axis, keepdims=True)
    scales = np.where(largest > 0, largest / _INT8, 1).astype(np.float32)
    return np.clip(np.rint(matrix / scales), -_INT8, _INT8).astype(np.int8), scales
