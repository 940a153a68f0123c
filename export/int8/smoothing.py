"""Outlier channels of a norm's output, moved into the weights of the layers that read it: exact, and easier for int8.

A token has one scale, so one channel that is 15 times as large as the others costs all of them four bits. Before it is
quantized, a norm's output y becomes (y - c) / s, with a shift c and a factor s of each channel: gamma / s and
(beta - c) / s instead of the norm's own gamma and beta, W * s and b + W c in the layers that read it. Whoever else
reads y (the residual of post-norm encoders, as BERT) reads s * ((y - c) / s) + c.

c is the channel's mean over texts; s = d^a / w^(1-a) with the channel's largest distance d from its mean and the
largest weight w that meets it (Xiao et al. 2022, SmoothQuant; shifts as Wei et al. 2023, Outlier Suppression+).
Knows neither scales nor kernels.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import onnx
from onnx import helper, numpy_helper

from nopad.export.int8.activations import Array, Channels, channels
from nopad.export.int8.linear_layers import LinearLayer, drop_unread
from nopad.model.packing import PackedBatch

# The share of an outlier that the weights take. MiniLM, error of embeddings: 3.2 % with 0.75, 3.6 % with 0.5.
ALPHA = 0.75
_LEAST = 1e-5  # of a channel that is always the same


def smooth(model: onnx.ModelProto, layers: Sequence[LinearLayer], batches: Sequence[PackedBatch]) -> int:
    """Move the outlier channels of every norm that `layers` read into their weights, in place; `batches` show them.

    Returns how many norms were changed. The graph computes what it computed, but for rounding in fp32.
    """
    readers: dict[str, list[LinearLayer]] = defaultdict(list)
    for layer in layers:
        readers[layer.activation].append(layer)
    norms = {node.output[0]: node for node in model.graph.node if node.op_type == "LayerNormalization"}
    norms = {name: node for name, node in norms.items() if name in readers}
    graph = _Smoothing(model)
    for name, measured in channels(model, list(norms), batches).items():
        graph.smooth(norms[name], readers[name], measured)
    drop_unread(model.graph)
    return len(norms)


class _Smoothing:
    """A graph whose norms are changed one after the other."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.graph = model.graph
        self._constants = {tensor.name: tensor for tensor in model.graph.initializer}
        self._nodes = {node.name: node for node in model.graph.node}

    def smooth(self, norm: onnx.NodeProto, readers: Sequence[LinearLayer], measured: Channels) -> None:
        products = [self._nodes[layer.node] for layer in readers]
        weights = [self._values(node.input[1]) for node in products]
        axes = [(1, -1) if layer.axis == 0 else (-1, 1) for layer in readers]  # the shape of a factor of its inputs
        largest = np.max([np.abs(w).max(axis=layer.axis) for w, layer in zip(weights, readers, strict=True)], axis=0)
        factor = np.maximum(measured.reach, _LEAST) ** ALPHA / np.maximum(largest, _LEAST) ** (1 - ALPHA)
        factor = (factor / factor.mean()).astype(np.float32)
        # A shift costs an addition where there is no bias yet to take it.
        biased = all(len(node.input) > 2 and self._is_vector(node.input[2]) for node in products)
        shift = measured.mean if biased else np.zeros_like(measured.mean)
        for node, weight, axis, layer in zip(products, weights, axes, readers, strict=True):
            node.input[1] = self._constant(f"{node.input[1]}:{layer.node}", weight * factor.reshape(axis))
            if biased:
                moved = weight @ shift if layer.axis == 0 else shift @ weight
                node.input[2] = self._constant(f"{node.input[2]}:{layer.node}", self._values(node.input[2]) + moved)
        gamma, beta = self._values(norm.input[1]), np.zeros_like(shift)
        if len(norm.input) > 2 and norm.input[2]:
            beta = self._values(norm.input[2])
        self._restore(norm, products, factor, shift)
        del norm.input[1:]
        norm.input.append(self._constant(f"{norm.output[0]}:gamma", gamma / factor))
        if (moved := (beta - shift) / factor).any():
            norm.input.append(self._constant(f"{norm.output[0]}:beta", moved))

    def _restore(self, norm: onnx.NodeProto, products: Sequence[onnx.NodeProto], factor: Array, shift: Array) -> None:
        """Give all other readers of the norm's output what they had."""
        name = norm.output[0]
        own = {node.name for node in products}
        others = [node for node in self.graph.node if name in node.input and node.name not in own]
        if not others:
            return
        restored, scaled = f"{name}:restored", f"{name}:scaled"
        place = next(index for index, node in enumerate(self.graph.node) if node.name == norm.name) + 1
        steps = [("Mul", name, self._constant(f"{name}:factor", factor), scaled if shift.any() else restored)]
        if shift.any():
            steps.append(("Add", scaled, self._constant(f"{name}:shift", shift), restored))
        for number, (operator, x, constant, output) in enumerate(steps):
            node = helper.make_node(operator, [x, constant], [output], f"{norm.name}/int8/{operator}")
            self.graph.node.insert(place + number, node)
        for node in others:
            for index, value in enumerate(node.input):
                if value == name:
                    node.input[index] = restored

    def _values(self, name: str) -> Array:
        return numpy_helper.to_array(self._constants[name])

    def _is_vector(self, name: str) -> bool:
        return name in self._constants and len(self._constants[name].dims) == 1

    def _constant(self, name: str, values: Array) -> str:
        self._constants[name] = numpy_helper.from_array(np.ascontiguousarray(values, dtype=np.float32), name)
        self.graph.initializer.append(self._constants[name])
        return name
