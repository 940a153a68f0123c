"""What one run of a graph computes and moves: groups of operators with their FLOPs and bytes. Knows no GPU.

A group is what a compiler for GPUs is assumed to make of operators that meet:

- a matrix product, with bias, activation and quantization behind it (its epilogue) when that is all that lies between;
- attention, MatMul-Softmax-MatMul with scale and mask, fused: scores never reach memory. A transposition alone behind
  it is free;
- the rest between two of these (norms, residuals, rotary, gating, gathers): read and written once, one kernel for each
  tensor it leaves to others.

Counted from the packed ONNX graph at concrete shapes (`open_graph`, `count_graph`); or from the architecture in a
manifest (`count_architecture`) where the graph has operators of another target, which raise `UncountableError`.
FLOPs: a multiply-add is two; only products and attention have any. Weights are read once. Shapes are the executed ones,
filler and padding included.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from nopad.model.errors import NopadError
from nopad.runtime.planning.cost_model import cost_model

Kind = Literal["product", "attention", "memory"]
WIDTHS = {"fp32": 4, "fp16": 2, "bf16": 2, "int8": 1}


class UncountableError(NopadError):
    """The graph has operators or inputs whose work is not known here; count by the architecture instead."""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """One micro-batch as it is executed."""

    tokens: int  # of the stream, filler included
    sequences: int
    longest: int


@dataclass(frozen=True, kw_only=True)
class Group:
    """Operators that run together.

    `rows`, `columns`, `inner` of each of `batch` products; for attention queries, keys and head size of each of `batch`
    heads.
    """

    kind: Kind
    flops: float
    bytes: float  # read and written
    precision: str  # of the product
    kernels: int = 1
    batch: int = 1
    rows: int = 0
    columns: int = 0
    inner: int = 0
    name: str = ""


def product(
    rows: int, columns: int, inner: int, *, precision: str, width: float, batch: int = 1, name: str = ""
) -> Group:
    """`batch` products [rows, inner] x [inner, columns]; operands as wide as `precision`, results `width` bytes."""
    operand = WIDTHS[precision] * (rows * inner + inner * columns)
    return Group(
        kind="product",
        flops=2.0 * batch * rows * columns * inner,
        bytes=batch * (operand + width * rows * columns),
        precision=precision,
        batch=batch,
        rows=rows,
        columns=columns,
        inner=inner,
        name=name,
    )


def attention(
    heads: int, queries: int, keys: int, head_size: int, *, precision: str, mask_bytes: float = 0.0, name: str = ""
) -> Group:
    """Fused attention of `heads` (sequences or blocks times heads): q, k, v and the mask in, one output."""
    moved = WIDTHS[precision] * heads * head_size * (2 * queries + 2 * keys)
    return Group(
        kind="attention",
        flops=4.0 * heads * queries * keys * head_size,
        bytes=moved + mask_bytes,
        precision=precision,
        batch=heads,
        rows=queries,
        columns=keys,
        inner=head_size,
        name=name,
    )


def memory(moved: float, *, precision: str, kernels: int = 1, name: str = "") -> Group:
    """Operators that only move `moved` bytes."""
    return Group(kind="memory", flops=0.0, bytes=moved, precision=precision, kernels=kernels, name=name)


def total_flops(groups: tuple[Group, ...]) -> float:
    """FLOPs of all groups."""
    return sum(group.flops for group in groups)


def total_bytes(groups: tuple[Group, ...]) -> float:
    """Bytes that all groups move."""
    return sum(group.bytes for group in groups)


def count_architecture(
    architecture: Mapping[str, Any], shape: Shape, *, precision: str, block: int = 64, gather: bool = True
) -> tuple[Group, ...]:
    """Groups of a packed encoder that a manifest's `architecture` describes, without its head.

    `gather=False` leaves out the way between stream and padded square, as engines that pad have none. int8 means what
    `nopad.export.int8.quantize` makes: the linear layers' products in int8, everything else fp16.
    Raises `UsageError` if the architecture is no packed encoder's.
    """
    model = cost_model(architecture, block=block)
    h, i, heads = model.hidden_size, model.intermediate_size, model.num_heads
    t, square = shape.tokens, shape.sequences * shape.longest
    around = "fp16" if precision == "int8" else precision  # what is not quantized
    width = WIDTHS[around]
    fed = WIDTHS[precision] * t  # bytes a column that a product reads
    wide = width * t * h
    span = 3 * block

    def linear(columns: int, inner: int, name: str) -> Group:
        return product(t, columns, inner, precision=precision, width=width, name=name)

    def moved(amount: float, name: str, kernels: int = 1) -> Group:
        return memory(amount, precision=around, kernels=kernels, name=name)

    one_global = [attention(shape.sequences * heads, shape.longest, shape.longest, h // heads, precision=around)]
    if gather:
        one_global = [
            moved(3 * wide + 3 * width * square * h, "gather", 3),
            *one_global,
            moved(width * square * h + fed * h, "scatter"),
        ]
    elif model.gated:
        one_global = [moved(4 * wide, "rotary", 2), *one_global]
    mask = 4.0 * t * span
    one_local = [
        moved(3 * wide + 7 * wide, "neighbours", 3),
        attention(t // block * heads, block, span, h // heads, precision=around, mask_bytes=mask),
    ]
    if precision == "int8":
        one_local.append(moved(wide + fed * h, "quantize"))
    between = moved(2 * wide + wide + fed * h, "residual and norm", 2)
    mlp = [linear(i, h, "mlp in"), linear(h, i, "mlp out")]
    if model.gated:
        gating = moved(2 * width * t * i + fed * i, "gating")
        mlp = [linear(2 * i, h, "mlp in"), gating, linear(h, i, "mlp out")]
    groups = [moved(wide + wide, "embeddings")]
    for layer in range(model.local_layers + model.global_layers):
        core = one_local if layer < model.local_layers else one_global
        groups += [linear(3 * h, h, "query, key, value"), *core, linear(h, h, "attention out"), between, *mlp, between]
    return tuple(groups)


@dataclass(frozen=True)
class Graph:
    """A packed graph without its weights, and the precision it stands in."""

    model: Any  # onnx.ModelProto
    precision: str


def open_graph(path: Path) -> Graph:
    """Read the graph at `path`; its weights are dropped, their shapes kept.

    Raises `UncountableError` if it is not the packed graph that `nopad.export.graph.onnx` writes for GPUs.
    """
    from nopad.bench.forecast import count_graph as graphcount

    return graphcount.open_graph(path)


def count_graph(graph: Graph, shape: Shape, *, precision: str) -> tuple[Group, ...]:
    """Groups of `graph` at `shape`, in the order of the graph.

    A graph of another precision is counted as if it were exported in `precision`. Raises `UncountableError`.
    """
    from nopad.bench.forecast import count_graph as graphcount

    return graphcount.count_graph(graph, shape, precision)
