"""What a run of a graph computes and moves: groups of operators with their FLOPs and bytes. Knows no GPU.

A group is what a GPU compiler is assumed to make of neighbouring operators:

- a matrix product, with bias, activation and quantization behind it (its epilogue) where nothing else comes between;
- attention, MatMul-Softmax-MatMul with scale and mask, fused: scores never reach memory. A lone transposition
  behind it is free;
- everything else between two of these (norms, residuals, rotary, gating, gathers): read and written once, one kernel
  for each tensor that other groups read.

Counted from the packed ONNX graph at concrete shapes (`count_graph.py`); or from the architecture in a manifest
(`count_architecture.py`) where the graph has operators of another target, which raise `UncountableError`.
FLOPs: a multiply-add is two; only products and attention have any. Weights are read once. Shapes are the executed ones,
filler and padding included.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from nopad.model.errors import NopadError

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
