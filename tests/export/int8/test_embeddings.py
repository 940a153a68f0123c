"""Token embeddings in 8 bits: which tables, and how near their rows stay."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from int8_models import session
from onnx import TensorProto, helper, numpy_helper

from nopad.export.int8.embeddings import round_embeddings

ROWS = np.random.default_rng(0).standard_normal((2048, 160)).astype(np.float32)
ROWS[7] *= 1000


def _graph(*more: onnx.NodeProto) -> onnx.ModelProto:
    table = numpy_helper.from_array(ROWS, "table")
    small = numpy_helper.from_array(ROWS[:16], "positions")
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["tokens"], "embeddings/Gather"),
        helper.make_node("Gather", ["positions", "zero"], ["first"], "embeddings/Gather_1"),
        helper.make_node("Add", ["tokens", "first"], ["y"], "embeddings/Add"),
        *more,
    ]
    ids = helper.make_tensor_value_info("ids", TensorProto.INT64, [None])
    zero = numpy_helper.from_array(np.array([1]), "zero")
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, 160])
    graph = helper.make_graph(nodes, "tables", [ids], [y], [table, small, zero])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def test_a_large_table_is_stored_by_row() -> None:
    model = _graph()
    assert round_embeddings(model) == 1
    onnx.checker.check_model(model)
    kinds = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    assert kinds.pop("table:int8") == TensorProto.INT8 and "table" not in kinds and "positions" in kinds
    assert model.ByteSize() < ROWS.nbytes / 3.5
    ids = np.array([3, 7, 2047, 3])
    ours = session(model).run(None, {"ids": ids})[0]
    step = np.abs(ROWS[ids]).max(axis=1, keepdims=True) / 127
    assert (np.abs(ours - ROWS[ids] - ROWS[1]) <= 0.51 * step).all()


@pytest.mark.parametrize("operator", ["MatMul", "If"])
def test_a_table_that_is_read_otherwise_stays(operator: str) -> None:
    """The decoder of fill-mask is tied to it; or a branch reads it."""
    if operator == "MatMul":
        more = helper.make_node("MatMul", ["y", "tied"], ["scores"])
        tied = helper.make_node("Transpose", ["table"], ["tied"], perm=[1, 0])
        model = _graph(tied, more)
    else:
        out = helper.make_tensor_value_info("table", TensorProto.FLOAT, [2048, 160])
        branch = helper.make_graph([], "branch", [], [out])
        model = _graph(helper.make_node("If", ["yes"], ["rows"], then_branch=branch, else_branch=branch))
    before = model.SerializeToString()
    assert round_embeddings(model) == 0 and model.SerializeToString() == before
