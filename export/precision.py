"""Which part of the encoder runs in which precision. The one place where that is decided."""

from __future__ import annotations

import copy
from typing import Literal, get_args

import torch
from torch import nn

from nopad.model.encoder import PackedEncoder
from nopad.model.errors import NopadError

Precision = Literal["fp32", "fp16"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)

# What stays in fp32 in an fp16 encoder, because it decides accuracy. Softmax, rotary angles and pooling stand in the
# encoder's own code (`nopad.model`), norms and heads here.
#
#   part                                   fp16 encoder
#   embeddings, Wqkv, Wo, Wi, dense        fp16 (weights and products)
#   decoder of fill-mask (tied)            fp16
#   layer norms                            fp32
#   attention softmax, rotary angles       fp32
#   pooling, prediction head, classifier   fp32
_HALF_MODULES = (nn.Embedding, nn.Linear)
_FP32_PARTS = ("pooler",)
_HALF_HEADS = ("decoder",)


def cast(encoder: PackedEncoder, precision: Precision) -> PackedEncoder:
    """A copy of `encoder` in `precision`; the encoder itself, where nothing changes. Raises for an unknown one."""
    if precision not in PRECISIONS:
        raise NopadError(f"unknown precision {precision!r}; the ONNX target has {', '.join(PRECISIONS)}")
    if precision == "fp32":
        return encoder
    out = copy.deepcopy(encoder)
    for name, module in out.backbone().named_modules():
        if isinstance(module, _HALF_MODULES) and not name.startswith(_FP32_PARTS):
            module.to(torch.float16)
    for name, module in out.named_modules():
        if name.rsplit(".", 1)[-1] in _HALF_HEADS:
            module.to(torch.float16)
    return out
