"""How the nodes of a packed graph are named: after the module that they compute, `model.layers.0.attn.Wqkv/Gemm`.

Engines keep these names, so int8, the check of TensorRT's network and the forecast recognise a layer's product by them.
"""

from __future__ import annotations

import re

# A module inside a numbered encoder layer: `layers.0.attn.Wqkv`, `bert.encoder.layer.0.attention.self`.
_IN_LAYER = re.compile(r"(^|\.)layers?\.\d+\.")
_DECODERS = ("decoder", "lm_head")


def node_name(module: str, operator: str, number: int = 0) -> str:
    """The name of a module's node; `number` counts those with the same operator, from 0."""
    return f"{module}/{operator}_{number}" if number else f"{module}/{operator}"


def module_of(node: str) -> str:
    """The module that a node computes. Empty for names of other exporters, which begin with a slash."""
    return node.partition("/")[0]


def in_layer(node: str) -> bool:
    """Whether a node, or a module, is inside an encoder layer: not embeddings, pooler, head or decoder."""
    return _IN_LAYER.search(module_of(node)) is not None


def is_decoder(node: str) -> bool:
    """Whether a node, or a module, is the product with the vocabulary of fill-mask."""
    return module_of(node).rpartition(".")[2] in _DECODERS
