"""The packed encoder in ONNX Runtime's own CPU operators (domain `com.microsoft`): the graph of `--target cpu`.

Two steps, both exact. `cpu_attention` is a factory of `nopad.model.attention`: fused attention, without padding
or a mask where one sequence fills the batch, without windows where no text is longer than they reach, and fused rotary
positions; the stream may have any length. `rearrange_cpu` then avoids copies that the encoder's code implies: slices of
a product become products of slices of the weight, and a product is added to its residual as it is computed.

What each step buys, and what was tried and left out, is in docs/findings.md. The operators are described in ONNX
Runtime's `docs/ContribOperators.md`.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir
import torch
from torch import Tensor

from nopad.export.graph.rewrite import constant, drop_unread, replace, split_weights
from nopad.model.attention import Attend, PackedLayout, Rotary, local_bias, nearby_keys, picking, whole_blocks

DOMAIN = "com.microsoft"
# Our own nodes between the two steps: torch cannot export a condition around operators that it does not know.
_GLOBAL, _LOCAL = "GlobalAttention", "LocalAttention"


def cpu_attention(layout: PackedLayout) -> Attend:
    """Attention for the CPU graph. The stream needs no filler: a block that reaches beyond its ends is masked there."""
    total = layout.sequence_ids.shape[0]
    stream = torch.arange(total)
    lengths = (layout.pad_index >= 0).sum(1).to(torch.int32)
    gather = layout.pad_index.clamp(min=0)
    scatter = (layout.sequence_ids * layout.pad_index.shape[1] + layout.position_ids).clamp(min=0)
    alone = layout.sequence_ids[-1] == 0  # and without filler, which is sequence -1
    queries, whole = whole_blocks(layout)
    keys = nearby_keys(whole).clamp(max=total - 1)  # [blocks, 3 * block]
    bias = local_bias(whole)
    # Where the window covers every whole text, local layers are global: fewer scores, unless padding adds more.
    longest = lengths.max()
    short = (longest <= layout.half_window + 1) & (longest * lengths.shape[0] <= 3 * total)

    def attend(q: Tensor, k: Tensor, v: Tensor, *, local: bool, rope: Rotary = None, dropout: float = 0.0) -> Tensor:
        heads, size = q.shape[1], q.shape[2]
        if rope is not None:
            q, k = (_rotated(x, stream, rope) for x in (q, k))
        q, k, v = (x.flatten(1) for x in (q, k, v))
        if local:
            # One row per token and head, gathered as [blocks, heads, 3 * block, size]: the operator need not transpose.
            rows = (keys * heads).unsqueeze(1) + torch.arange(heads).unsqueeze(1)
            inputs = (short, q, k, v, gather, lengths, scatter, queries, rows, bias, stream)
            out = _operator(f"nopad::{_LOCAL}", inputs, q, heads)
        else:
            out = _operator(f"nopad::{_GLOBAL}", (alone, q, k, v, gather, lengths, scatter), q, heads)
        return out.unflatten(1, (heads, size))

    return picking(attend)


def _operator(name: str, inputs: Sequence[Tensor], like: Tensor, heads: int) -> Tensor:
    """A node that torch only passes on: `domain::name`, with a result of `like`'s shape and dtype."""
    return torch.onnx.ops.symbolic(name, inputs, {"num_heads": int(heads)}, dtype=like.dtype, shape=like.shape)


def _rotated(x: Tensor, stream: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
    """[T, heads, size] -> the same, rotated. The operator's table of angles has a row for every token of the stream."""
    flat = x.flatten(1).unsqueeze(0)
    cos, sin = (angles.squeeze(1) for angles in rope)
    inputs = (flat, stream.unsqueeze(0), cos, sin)
    turned = _operator(f"{DOMAIN}::RotaryEmbedding", inputs, flat, x.shape[1])
    return turned.squeeze(0).unflatten(1, x.shape[1:])


def rearrange_cpu(model: ir.Model) -> None:
    """Rewrite a graph that was traced with `cpu_attention`, in place."""
    graph = model.graph
    for node in list(graph):
        if node.op_type in (_GLOBAL, _LOCAL):
            _choose_attention(graph, node)
    split_weights(graph)
    for node in list(graph):
        if node.op_type == "Add":
            _accumulate(graph, node)
    drop_unread(graph)
    model.opset_imports.pop("nopad", None)
    model.opset_imports[DOMAIN] = 1


def _choose_attention(graph: ir.Graph, node: ir.Node) -> None:
    """Sequences are padded to the longest, except in two cases, chosen at run time.

    Global layers: a single sequence is the stream itself, and the kernel without a mask streams through its keys. Local
    layers: where a text is longer than the window, blocks of queries meet their windows.
    """
    condition, q, k, v, gather, lengths, scatter, *local = (value for value in node.inputs if value is not None)
    assert q.shape is not None
    width, result = q.shape[1], node.outputs[0].name
    assert isinstance(width, int)
    count = node.attributes["num_heads"].as_int()
    batch_axis, as_stream = constant(graph, "batch_axis", [0]), constant(graph, "as_stream", [-1, width])

    def attention(*operands: ir.Value | None) -> ir.Node:
        return ir.node("MultiHeadAttention", operands, {"num_heads": count}, domain=DOMAIN)

    def branch(name: str, *nodes: ir.Node) -> ir.Graph:
        for number, node in enumerate(nodes):  # names are unique in the whole model, branches included
            node.name = node.outputs[0].name = f"{result}/{name}/{number}"
        return ir.Graph([], nodes[-1].outputs, nodes=nodes, name=f"{result}/{name}")

    def back(name: str, *nodes: ir.Node, index: ir.Value) -> ir.Graph:
        rows = ir.node("Reshape", [nodes[-1].outputs[0], as_stream])
        return branch(name, *nodes, rows, ir.node("Gather", [rows.outputs[0], index]))

    padded = [ir.node("Gather", [x, gather]) for x in (q, k, v)]
    masked = attention(*(x.outputs[0] for x in padded), None, lengths)
    several = back("several", *padded, masked, index=scatter)
    if local:
        queries, rows, bias, stream = local
        own = ir.node("Gather", [q, queries])
        as_rows = constant(graph, "as_rows", [-1, width // count])
        by_head = [ir.node("Reshape", [x, as_rows]) for x in (k, v)]
        nearby = [ir.node("Gather", [x.outputs[0], rows]) for x in by_head]
        windowed = attention(own.outputs[0], *(x.outputs[0] for x in nearby), None, None, bias)
        branches = several, back("windows", own, *by_head, *nearby, windowed, index=stream)
    else:
        batch = [ir.node("Unsqueeze", [x, batch_axis]) for x in (q, k, v)]
        fused = attention(*(x.outputs[0] for x in batch))
        branches = branch("one", *batch, fused, ir.node("Squeeze", [fused.outputs[0], batch_axis])), several
    then, otherwise = branches
    replace(graph, node, [ir.node("If", [condition], {"then_branch": then, "else_branch": otherwise})])


def _accumulate(graph: ir.Graph, node: ir.Node) -> None:
    """Add(x, Gemm(a, W)) -> Gemm(a, W, x): the product is added to its residual as it is computed."""
    first, second = node.inputs
    for value, residual in ((second, first), (first, second)):
        product = value.producer() if value and residual and value.shape == residual.shape else None
        if value and product and product.op_type == "Gemm" and len(product.inputs) == 2 and len(value.uses()) == 1:
            new = ir.node("Gemm", [*product.inputs, residual], product.attributes)
            return replace(graph, node, [new], also=product)
