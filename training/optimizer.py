"""What is trained and how fast: frozen layers, and AdamW's parameter groups with a learning rate for each depth."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from torch import nn

from nopad.model.backbone import BertBackbone
from nopad.model.encoder import PackedEncoder
from nopad.runtime.errors import UsageError


def blocks(encoder: PackedEncoder) -> list[nn.Module]:
    """The embeddings and then the layers, from the input up."""
    backbone = encoder.backbone()
    if isinstance(backbone, BertBackbone):
        return [backbone.embeddings, *backbone.encoder.layer]
    return [getattr(backbone, "embeddings", None) or backbone.embed_tokens, *backbone.layers]


def freeze(encoder: PackedEncoder, layers: int) -> None:
    """Leave the embeddings and the first `layers` layers as they are.

    Nothing below the first trained layer needs a gradient, so autograd keeps no activations there and has no backward.
    Raises `UsageError` if there are fewer layers.
    """
    embeddings, *above = blocks(encoder)
    if layers > len(above):
        raise UsageError(f"--freeze-layers {layers}: the model has only {len(above)} layers")
    for block in (embeddings, *above[:layers]):
        block.requires_grad_(False)


def parameter_groups(
    encoder: PackedEncoder,
    *,
    learning_rate: float,
    weight_decay: float,
    layer_decay: float,
    decayed: Collection[str],
) -> list[dict[str, Any]]:
    """AdamW's groups of all parameters that are trained.

    The head has `learning_rate`; each layer below it the rate of the one above times `layer_decay`, and the embeddings
    come last (arXiv:1905.05583, section 5.3.4). `weight_decay` is for the parameters named in `decayed`.
    """
    layers = blocks(encoder)
    below_head = {
        id(parameter): len(layers) - index for index, block in enumerate(layers) for parameter in block.parameters()
    }
    groups: dict[tuple[int, bool], list[nn.Parameter]] = {}
    for name, parameter in encoder.named_parameters():
        if parameter.requires_grad:
            depth = below_head.get(id(parameter), 0) if layer_decay < 1 else 0
            groups.setdefault((depth, name in decayed), []).append(parameter)
    return [
        {
            "params": parameters,
            "lr": learning_rate * layer_decay**depth,
            "weight_decay": weight_decay if has_decay else 0.0,
        }
        for (depth, has_decay), parameters in groups.items()
    ]
