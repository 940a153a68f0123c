"""Activations recomputed in the backward pass instead of kept: less memory for more time (arXiv:1604.06174)."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import partial

from torch import nn
from torch.utils.checkpoint import checkpoint

from nopad.model.encoder import PackedEncoder
from nopad.model.products import fast_products


def recompute_layers(encoder: PackedEncoder) -> None:
    """From now on, keep only what enters each layer of `encoder` for the backward pass; for use in `fast_products`."""
    layers = next(module for module in encoder.backbone().modules() if isinstance(module, nn.ModuleList))
    for layer in layers:
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False, context_fn=_contexts)


def _contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Of the first computation and of the second: PyTorch leaves the caller's modes for a backward pass."""
    return nullcontext(), fast_products()
