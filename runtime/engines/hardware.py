"""What each GPU generation can do: the table for engines, exporter and doctor. Standard library only.

Sources: CUDA C++ Programming Guide, "Arithmetic Instructions" (types by compute capability); TensorRT and
TensorRT-RTX support matrices; FlashAttention-2's requirements (fp16 or bf16, compute capability 8.0).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

Precision = Literal["fp32", "fp16", "bf16", "int8"]  # of an artifact; `nopad.export.graph.precision` defines each
PRECISIONS: tuple[Precision, ...] = get_args(Precision)  # the most exact first
Attention = Literal["flash", "sdpa"]


@dataclass(frozen=True, kw_only=True)
class Capability:
    """What GPUs of one compute capability can do."""

    sm: str  # sm75
    name: str
    precisions: tuple[Precision, ...]  # that TensorRT builds for it, the fastest useful precision first
    rtx_precisions: tuple[Precision, ...]  # that TensorRT-RTX builds; () where it does not support the GPU
    attention: Attention  # of the torch engine: FlashAttention-2, or SDPA with block-local layers


_AMPERE: tuple[Precision, ...] = ("fp16", "bf16", "fp32", "int8")


def _modern(sm: str, name: str, rtx: bool = True) -> Capability:
    return Capability(
        sm=sm,
        name=name,
        precisions=_AMPERE,
        rtx_precisions=_AMPERE if rtx else (),
        attention="flash",
    )


CAPABILITIES: dict[str, Capability] = {
    capability.sm: capability
    for capability in (
        # Turing has no bf16 and no FlashAttention-2; TensorRT-RTX has no fp32 matrix product for it.
        Capability(
            sm="sm75",
            name="Turing (T4, RTX 20)",
            precisions=("fp16", "fp32", "int8"),
            rtx_precisions=("fp16", "int8"),
            attention="sdpa",
        ),
        _modern("sm80", "Ampere (A100, A30)", rtx=False),
        _modern("sm86", "Ampere (A10, RTX 30)"),
        _modern("sm89", "Ada (L4, L40, RTX 40)"),
        _modern("sm90", "Hopper (H100, H200)", rtx=False),
        _modern("sm100", "Blackwell (B200)", rtx=False),
        _modern("sm120", "Blackwell (RTX 50)"),
    )
}
RTX_ARCHS = tuple(sm for sm, capability in CAPABILITIES.items() if capability.rtx_precisions)


def sm_of(major: int, minor: int) -> str:
    """`sm75` for compute capability 7.5."""
    return f"sm{major}{minor}"


def refusal(target: str, sm: str, precision: str) -> str | None:
    """Why `target` (tensorrt or tensorrt-rtx) has no engine of this precision on this GPU; None if it has."""
    capability = CAPABILITIES.get(sm)
    if capability is None:
        return f"{sm} is unknown; nopad knows {', '.join(CAPABILITIES)}"
    precisions = capability.rtx_precisions if target == "tensorrt-rtx" else capability.precisions
    if not precisions:
        return f"TensorRT-RTX does not support {sm}, {capability.name}; it builds for {', '.join(RTX_ARCHS)}"
    if precision not in precisions:
        why = ""
        if sm == "sm75":
            why = " (Turing has no bf16)" if precision == "bf16" else " (TensorRT-RTX has no fp32 matrix product on it)"
        return f"{target} has no {precision} on {sm}, {capability.name}{why}; use --precision {precisions[0]}"
    return None
