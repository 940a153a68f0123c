"""int8 for ONNX Runtime's CPU kernels: the linear layers of a packed fp32 graph become integer products.

Operators: `QuantizeLinear` and `com.microsoft.MatMulIntegerToFloat` (unsigned activations, signed weights, one scale
for each output channel), 3.5 times as fast as fp32 where the CPU has VNNI. Activations are scaled in one of two ways:

- per token: each row by its own largest magnitude, before and after the product. Needs no calibration, an outlier
  spoils its own token alone, and a text's answer does not depend on what else is in its batch: with one dynamic scale
  for a whole batch (`DynamicQuantizeLinear`) it does.
- calibrated: one constant scale for each tensor. Ten percent less time for a product; outliers cost every text.

Weights have 7 bits. Without VNNI (AVX2, early AVX-512) the kernels add pairs of products in 16 bits, and saturate:
2 * 255 * 127 does not fit, 2 * 255 * 63 does. So every x86 CPU computes the same integers.

Sensitive layers are found with these very products: a trial computes both, and a switch chooses.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from nopad.export.graph.cpu import DOMAIN
from nopad.export.int8.linear_layers import LinearLayer, drop_unread
from nopad.export.int8.quantize import Scheme
from nopad.export.int8.scales import Scales, quantize_weight

_WEIGHT_LEVELS = 63  # 7 bits
_ZERO = 128  # of unsigned activations that are symmetric
# With fewer rows a label more or less is chance (0.5 % of 200 is a single label), and logits decide.
_ENOUGH_ROWS = 200


def cpu_scheme(*, calibrated: bool) -> Scheme:
    """int8 of the packed fp32 graph: with scales `calibrated` on texts, or each token scaled by itself."""
    return Scheme(
        precision="fp32",
        rewrite=functools.partial(to_integers, per_token=not calibrated),
        calibrated=calibrated,
        weight_bits=_WEIGHT_LEVELS.bit_length() + 1,
        enough_rows=_ENOUGH_ROWS,
    )


def to_integers(
    model: onnx.ModelProto, layers: Sequence[LinearLayer], scales: Scales | None, *, per_token: bool
) -> None:
    """Replace the products of `layers` by integer products, in place; other readers of their inputs are left alone.

    `scales`: of each tensor that they read, unless `per_token`. With None the graph becomes a trial: every module has
    both products and a switch (`int8:MODULE`, bool []), and scales (`scale:TENSOR`, fp32 []) are inputs.
    """
    graph = _Rewriting(model, scales, per_token=per_token, trial=scales is None)
    by_node = {layer.node: layer for layer in layers}
    for node in list(model.graph.node):
        layer = by_node.get(node.name)
        if layer is None:
            graph.nodes.append(node)
        else:
            graph.replace(node, layer)
    graph.finish()


class _Rewriting:
    """A graph on its way from fp32 to integer products."""

    def __init__(self, model: onnx.ModelProto, scales: Scales | None, *, per_token: bool, trial: bool) -> None:
        self.model = model
        self.scales = scales or {}
        self.per_token = per_token
        self.trial = trial
        self.nodes: list[onnx.NodeProto] = []
        self._weights = {tensor.name: tensor for tensor in model.graph.initializer}
        self._quantized: dict[str, tuple[str, str, str]] = {}  # query, key and value share one activation
        self._switches: set[str] = set()
        self._zero = self._constant("int8:zero", np.array(_ZERO, dtype=np.uint8))
        self._step = self._constant("int8:step", np.array(1 / 127, dtype=np.float32))
        self._last = self._constant("int8:last", np.array([-1], dtype=np.int64))
        self._tiny = self._constant("int8:tiny", np.array(1e-20, dtype=np.float32))  # a row of zeros is divided, too

    def replace(self, node: onnx.NodeProto, layer: LinearLayer) -> None:
        """Compute the product of a layer, `x @ w (+ c)`, in integers."""
        name, output = f"{layer.module}/int8", node.output[0]
        quantized, scale, rows = self._activation(layer.activation, name)
        weight, channels = self._weight(layer)
        result = f"{output}:int8" if self.trial else output
        plus = node.input[2] if len(node.input) > 2 else ""
        inputs = [quantized, weight, scale, channels, self._zero]
        if plus and not rows and self._is_vector(plus):
            inputs += ["", plus]
            plus = ""
        steps = [(op, other) for op, other in (("Mul", rows), ("Add", plus)) if other]
        product = f"{output}:product" if steps else result
        self._add("MatMulIntegerToFloat", node.name.rpartition("/")[2], name, inputs, product, domain=DOMAIN)
        for number, (operator, other) in enumerate(steps, 1):
            target = result if number == len(steps) else f"{output}:{operator}"
            product = self._add(operator, node.name.rpartition("/")[2], name, [product, other], target)
        if self.trial:
            switch = f"int8:{layer.module}"
            if switch not in self._switches:
                self._switches.add(switch)
                self._argument(switch, TensorProto.BOOL)
            node.output[0] = f"{output}:fp32"
            self.nodes.append(node)
            self._add("Where", node.name.rpartition("/")[2], name, [switch, result, node.output[0]], output)

    def finish(self) -> None:
        """Put the new nodes in place of the old, and drop constants that nothing reads."""
        graph = self.model.graph
        del graph.node[:]
        graph.node.extend(self.nodes)
        drop_unread(graph)
        if not any(entry.domain == DOMAIN for entry in self.model.opset_import):
            self.model.opset_import.append(helper.make_opsetid(DOMAIN, 1))

    def _activation(self, x: str, name: str) -> tuple[str, str, str]:
        """The tensor in unsigned 8 bits, its scale, and the factor of each row, [..., 1], if it has been divided."""
        if x not in self._quantized:
            scale, rows, source = self._step, "", x
            if self.per_token:
                size = self._add("Abs", x, name, [x], f"{x}:magnitude")
                largest = self._add("ReduceMax", x, name, [size, self._last], f"{x}:largest")
                rows = self._add("Max", x, name, [largest, self._tiny], f"{x}:rows")
                source = self._add("Div", x, name, [x, rows], f"{x}:divided")
            elif self.trial:
                scale = self._argument(f"scale:{x}", TensorProto.FLOAT)
            else:
                scale = self._constant(f"{x}:scale", np.asarray(self.scales[x], dtype=np.float32))
            quantized = self._add("QuantizeLinear", x, name, [source, scale, self._zero], f"{x}:uint8")
            self._quantized[x] = quantized, scale, rows
        return self._quantized[x]

    def _weight(self, layer: LinearLayer) -> tuple[str, str]:
        values, channels = quantize_weight(
            numpy_helper.to_array(self._weights[layer.weight]), layer.axis, _WEIGHT_LEVELS
        )
        matrix = np.ascontiguousarray(values if layer.axis == 1 else values.T)  # [in, out]
        name = f"{layer.weight}:int8:{layer.axis}"
        return self._constant(name, matrix), self._constant(f"{name}:scale", channels)

    def _is_vector(self, name: str) -> bool:
        return name in self._weights and len(self._weights[name].dims) == 1

    def _constant(self, name: str, values: npt.NDArray[Any]) -> str:
        if name not in self._weights:
            self._weights[name] = numpy_helper.from_array(values, name)
            self.model.graph.initializer.append(self._weights[name])
        return name

    def _argument(self, name: str, kind: int) -> str:
        self.model.graph.input.append(helper.make_tensor_value_info(name, kind, []))
        return name

    def _add(self, operator: str, what: str, name: str, inputs: list[str], output: str, domain: str = "") -> str:
        self.nodes.append(helper.make_node(operator, inputs, [output], f"{name}/{what}:{operator}", domain=domain))
        return output
