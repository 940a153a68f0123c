"""The groups of a packed encoder by its architecture, where there is no graph to count."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nopad.bench.forecast.groups import WIDTHS, Group, Shape, attention, memory, product
from nopad.runtime.planning.cost_model import cost_model


def count_architecture(
    architecture: Mapping[str, Any], shape: Shape, *, precision: str, block: int = 64, gather: bool = True
) -> tuple[Group, ...]:
    """Groups of a packed encoder that a manifest's `architecture` describes, without its head.

    `gather=False` leaves out gathers and scatters between stream and padded square: engines that pad have none. int8 is
    as `nopad.export.int8.quantize` exports it: the linear layers' products in int8, everything else fp16.
    Raises `UsageError` if the architecture is not a packed encoder's.
    """
    model = cost_model(architecture, block=block)
    h, i, heads = model.hidden_size, model.intermediate_size, model.num_heads
    t, square = shape.tokens, shape.sequences * shape.longest
    float_precision = "fp16" if precision == "int8" else precision
    width = WIDTHS[float_precision]
    operand = WIDTHS[precision] * t  # bytes of a column that a product reads
    wide = width * t * h
    span = 3 * block

    def linear(columns: int, inner: int, name: str) -> Group:
        return product(t, columns, inner, precision=precision, width=width, name=name)

    def moved(amount: float, name: str, kernels: int = 1) -> Group:
        return memory(amount, precision=float_precision, kernels=kernels, name=name)

    in_global = [
        attention(shape.sequences * heads, shape.longest, shape.longest, h // heads, precision=float_precision)
    ]
    if gather:
        in_global = [
            moved(3 * wide + 3 * width * square * h, "gather", 3),
            *in_global,
            moved(width * square * h + operand * h, "scatter"),
        ]
    elif model.gated:
        in_global = [moved(4 * wide, "rotary", 2), *in_global]
    mask = 4.0 * t * span
    in_local = [
        moved(3 * wide + 7 * wide, "neighbours", 3),
        attention(t // block * heads, block, span, h // heads, precision=float_precision, mask_bytes=mask),
    ]
    if precision == "int8":
        in_local.append(moved(wide + operand * h, "quantize"))
    between = moved(2 * wide + wide + operand * h, "residual and norm", 2)
    mlp = [linear(i, h, "mlp in"), linear(h, i, "mlp out")]
    if model.gated:
        gating = moved(2 * width * t * i + operand * i, "gating")
        mlp = [linear(2 * i, h, "mlp in"), gating, linear(h, i, "mlp out")]
    groups = [moved(wide + wide, "embeddings")]
    for layer in range(model.local_layers + model.global_layers):
        core = in_local if layer < model.local_layers else in_global
        groups += [linear(3 * h, h, "query, key, value"), *core, linear(h, h, "attention out"), between, *mlp, between]
    return tuple(groups)
