"""Which part of the encoder runs in which precision. Decided here alone.

`cast` applies it to an encoder, `nopad.export.engines.network_check` holds TensorRT's parsed network against it.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from nopad.export.graph.node_names import is_decoder
from nopad.model.backbone import Linear
from nopad.model.encoder import PackedEncoder
from nopad.model.errors import NopadError
from nopad.model.eurobert import RMSNorm
from nopad.runtime.engines.hardware import PRECISIONS, Precision

Dtype = Literal["fp32", "fp16", "bf16"]


@dataclass(frozen=True, kw_only=True)
class Policy:
    """The dtype of each part: of its weights, and of the values it computes with."""

    embeddings: Dtype
    layers: Dtype  # matrix products of the layers (Wqkv, Wo, Wi; query, key, value, dense; attention), residuals
    head: Dtype  # matrix products of pooler, prediction head and classifier
    decoder: Dtype  # matrix product of fill-mask; may be tied to the embeddings, so it has their dtype
    # These three are fixed in the encoder's own code (`nopad.model`) for every precision: they decide accuracy.
    norms: Dtype = "fp32"
    softmax: Dtype = "fp32"
    logits: Dtype = "fp32"  # and rotary angles, pooling and the activations of the head


# Figures are differences from fp32 of the embedded model's logits (the largest is 2.24) on 2,000 reviews of IMDb's test
# set, with every result rounded once to its dtype; no label changes in any of them.
# fp16: every matrix product is fp16, the head's too: TensorRT-RTX has no fp32 product for Turing. At most 1.2e-3 (mean
# 2e-4) with an fp16 head, 1.1e-3 (7e-5) with an fp32 one.
# bf16: 8 bits of mantissa, and every GPU that has it has fp32 products too, so the head stays fp32: at most 7.6e-3
# (mean 6e-4) against 1.1e-2 (2e-3) with a bf16 head. q and k rotated in fp32 would not help: 8.0e-3 (6e-4).
# On CPUs OpenVINO computes all of a bf16 graph in bf16: what norms, softmax and the head return is rounded, too. All
# reviews of IMDb's test set through the embedded model: 2 of 12,451 labels change.
# int8: the fp16 graph with the products of its layers quantized (`nopad.export.int8.quantize`).
POLICIES: dict[str, Policy] = {
    "fp32": Policy(embeddings="fp32", layers="fp32", head="fp32", decoder="fp32"),
    "fp16": Policy(embeddings="fp16", layers="fp16", head="fp16", decoder="fp16"),
    "bf16": Policy(embeddings="bf16", layers="bf16", head="fp32", decoder="bf16"),
    "int8": Policy(embeddings="fp16", layers="fp16", head="fp16", decoder="fp16"),
}
_TORCH = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def cast(encoder: PackedEncoder, precision: Precision) -> PackedEncoder:
    """A copy of `encoder` in `precision`; the encoder itself, where nothing changes.

    Raises `NopadError` for an unknown precision, and for int8, which `nopad.export.int8.quantize` makes of a graph.
    """
    if precision not in PRECISIONS or precision == "int8":
        raise NopadError(f"unknown precision {precision!r}; an encoder is cast to fp32, fp16 or bf16")
    if precision == "fp32":
        return encoder
    policy = POLICIES[precision]
    out = copy.deepcopy(encoder)
    for name, module in out.named_modules():
        dtype = _dtype_of(name, module, policy)
        if dtype is not None:
            module.to(_TORCH[dtype])
    return out


def _dtype_of(name: str, module: nn.Module, policy: Policy) -> Dtype | None:
    if isinstance(module, nn.Embedding):
        return policy.embeddings
    if isinstance(module, nn.LayerNorm | RMSNorm):
        return policy.norms
    if isinstance(module, Linear):  # a head's
        return policy.decoder if is_decoder(name) else policy.head
    return policy.layers if isinstance(module, nn.Linear) else None
