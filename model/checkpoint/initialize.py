"""Random weights for an encoder, as transformers initialises them."""

from __future__ import annotations

import math

import torch
from torch import nn

from nopad.model.encoder import PackedEncoder


def initialize(encoder: PackedEncoder) -> None:
    """Fill the encoder with random weights, as `_init_weights` of its transformers class does."""
    config = encoder.encoder_config
    std = config.initializer_range
    out_std = std / math.sqrt(2.0 * config.num_layers)
    embeddings = [module for module in encoder.modules() if isinstance(module, nn.Embedding)]
    for name, module in encoder.named_modules():
        if isinstance(module, nn.Linear):
            leaf = name.rsplit(".", 1)[-1]
            if config.architecture != "modernbert":
                nn.init.normal_(module.weight, std=std)
            else:
                scale = config.hidden_size**-0.5 if leaf == "classifier" else std if leaf in ("Wqkv", "Wi") else out_std
                if not any(module.weight is other.weight for other in embeddings):  # not a tied decoder
                    nn.init.trunc_normal_(module.weight, std=scale, a=-2 * scale, b=2 * scale)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            if config.architecture != "modernbert":
                nn.init.normal_(module.weight, std=std)
            else:
                nn.init.trunc_normal_(module.weight, std=std, a=-2 * std, b=2 * std)
            if module.padding_idx is not None and config.architecture != "modernbert":
                with torch.no_grad():
                    module.weight[module.padding_idx].zero_()
