"""int8 for ONNX Runtime's CPU kernels: the linear layers of a packed fp32 graph become integer products.

Operators: `QuantizeLinear` and `com.microsoft.MatMulIntegerToFloat` (unsigned activations, signed weights, one scale
for each output channel), 3.5 times as fast as fp32 where the CPU has VNNI. Each token is scaled by its own largest
magnitude, before and after the product, so an outlier spoils its own token alone, and a text's answer does not depend
on what else is in its batch: with one dynamic scale for a whole batch (`DynamicQuantizeLinear`) it does. What a GELU
returns is never below -0.17 and uses all 256 values.

Weights have 8 bits. Without VNNI (AVX2, early AVX-512) the kernels for signed weights add pairs of products in 16 bits,
and saturate, unless the session is told to be exact: `nopad.runtime.engines.onnx_session.exact_int8`.

Sensitive layers are found with these very products: a trial computes both, and a switch chooses.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from nopad.export.graph.cpu import DOMAIN
from nopad.export.int8.activations import moments
from nopad.export.int8.embeddings import round_embeddings
from nopad.export.int8.linear_layers import LinearLayer, drop_unread, linear_layers
from nopad.export.int8.quantize import Scheme
from nopad.export.int8.rounding import Rounded, feedback, round_weight
from nopad.export.int8.scales import Scales, quantize_weight
from nopad.export.int8.sessions import spread
from nopad.export.int8.smoothing import smooth
from nopad.export.progress import Progress
from nopad.model.packing import PackedBatch

_MIDDLE = 128  # stands for zero where activations are symmetric
_GELU_LEAST = 0.17  # no GELU, exact or by tanh, returns less than minus this (but for 0.00005)
_TEXT_BATCHES = 16  # that show outliers and what rounding costs: 32,000 tokens, where the texts have as many
_ENOUGH_TOKENS = 8  # for each input of a layer, so that its rounding follows the texts and not their chance
# With fewer rows a label more or less is chance (0.5 % of 200 is a single label), and logits decide.
_ENOUGH_ROWS = 200


def prepare(model: onnx.ModelProto, batches: Sequence[PackedBatch], progress: Progress) -> dict[str, Rounded]:
    """Take the outlier channels out of the fp32 graph's norms, in place, and round the weights of its layers.

    `batches` of texts show what the layers read. By name of a weight: where they have enough tokens for its layer.
    """
    texts = [batches[i] for i in spread(len(batches), _TEXT_BATCHES)]
    smooth(model, linear_layers(model), texts)
    tokens = sum(batch.num_tokens for batch in texts)
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    readers: dict[str, list[LinearLayer]] = defaultdict(list)
    for layer in linear_layers(model):
        if tokens >= _ENOUGH_TOKENS * weights[layer.weight].dims[1 - layer.axis]:
            readers[layer.activation].append(layer)
    rounded: dict[str, Rounded] = {}
    for done, (name, squares) in enumerate(moments(model, list(readers), texts)):
        progress("int8: rounding weights", done, len(readers))
        back = feedback(squares)
        for layer in readers[name]:
            values = numpy_helper.to_array(weights[layer.weight])
            rounded[layer.weight] = round_weight(values, layer.axis, back)
    return rounded


def to_integers(
    model: onnx.ModelProto,
    layers: Sequence[LinearLayer],
    scales: Scales | None,
    rounded: Mapping[str, Rounded] | None = None,
) -> None:
    """Replace the products of `layers` by integer products, in place; other readers of their inputs are left alone.

    Token embeddings are stored in 8 bits, too. `rounded`: weights by name that are not rounded to the nearest. With
    `scales` None, not empty, the graph becomes a trial: every module has both products and a switch (`int8:MODULE`,
    bool []).
    """
    round_embeddings(model)
    graph = _Rewriting(model, rounded or {}, trial=scales is None)
    by_node = {layer.node: layer for layer in layers}
    for node in list(model.graph.node):
        layer = by_node.get(node.name)
        if layer is None:
            graph.nodes.append(node)
        else:
            graph.replace(node, layer)
    graph.finish()


@dataclass(frozen=True)
class _Activation:
    """A tensor [T, in] in unsigned 8 bits, by the names of its parts."""

    values: str  # uint8 [T, in]
    rows: str  # fp32 [T, 1], the scale of each token
    zero: str  # uint8 [], what stands for zero, or for `-_GELU_LEAST` where it is zero itself


class _Rewriting:
    """A graph on its way from fp32 to integer products."""

    def __init__(self, model: onnx.ModelProto, rounded: Mapping[str, Rounded], *, trial: bool) -> None:
        self.model = model
        self.rounded = rounded
        self.trial = trial
        self.nodes: list[onnx.NodeProto] = []
        self._weights = {tensor.name: tensor for tensor in model.graph.initializer}
        self._quantized: dict[str, _Activation] = {}  # query, key and value share one activation
        self._switches: set[str] = set()
        self._gelus = {node.output[0] for node in model.graph.node if node.op_type == "Gelu"}
        self._middle = self._constant("int8:middle", np.array(_MIDDLE, dtype=np.uint8))
        self._lowest = self._constant("int8:lowest", np.array(0, dtype=np.uint8))
        self._one = self._constant("int8:one", np.array(1, dtype=np.float32))
        self._last = self._constant("int8:last", np.array([-1], dtype=np.int64))
        self._tiny = self._constant("int8:tiny", np.array(1e-20, dtype=np.float32))  # a row of zeros is divided, too

    def replace(self, node: onnx.NodeProto, layer: LinearLayer) -> None:
        """Compute the product of a layer, `x @ w (+ c)`, in integers."""
        name, output = f"{layer.module}/int8", node.output[0]
        kind = node.name.rpartition("/")[2]
        if layer.activation not in self._quantized:
            self._quantized[layer.activation] = self._activation(layer.activation, name)
        x = self._quantized[layer.activation]
        weight, channels = self._weight(layer)
        added = [node.input[2]] if len(node.input) > 2 and node.input[2] else []
        if x.zero == self._lowest:
            added = self._with_least(layer, weight, channels, added)
        inputs = [x.values, weight, self._one, channels, x.zero]
        product = self._add("MatMulIntegerToFloat", kind, name, inputs, f"{output}:product", domain=DOMAIN)
        steps = [("Mul", x.rows), *(("Add", other) for other in added)]
        for number, (operator, other) in enumerate(steps, 1):
            target = f"{output}:{number}" if number < len(steps) else f"{output}:int8" if self.trial else output
            product = self._add(operator, f"{kind}:{number}", name, [product, other], target)
        if self.trial:
            switch = f"int8:{layer.module}"
            if switch not in self._switches:
                self._switches.add(switch)
                self._argument(switch, TensorProto.BOOL)
            node.output[0] = f"{output}:fp32"
            self.nodes.append(node)
            self._add("Where", kind, name, [switch, product, node.output[0]], output)

    def finish(self) -> None:
        """Put the new nodes in place of the old, and drop constants that nothing reads."""
        graph = self.model.graph
        del graph.node[:]
        graph.node.extend(self.nodes)
        drop_unread(graph)
        if not any(entry.domain == DOMAIN for entry in self.model.opset_import):
            self.model.opset_import.append(helper.make_opsetid(DOMAIN, 1))

    def _activation(self, x: str, name: str) -> _Activation:
        """Nodes that scale each row of `x` to the largest of 8 bits, and round it."""
        if gelu := x in self._gelus:
            least = self._constant("int8:least", np.array(_GELU_LEAST, dtype=np.float32))
            values = size = self._add("Add", x, name, [x, least], f"{x}:raised")
        else:
            values, size = x, self._add("Abs", x, name, [x], f"{x}:magnitude")
        zero, levels = (self._lowest, 255) if gelu else (self._middle, 127)
        step = self._constant(f"int8:step:{levels}", np.array(1 / levels, dtype=np.float32))
        largest = self._add("ReduceMax", x, name, [size, self._last], f"{x}:largest")
        above = self._add("Max", x, name, [largest, self._tiny], f"{x}:above")
        rows = self._add("Mul", x, name, [above, step], f"{x}:rows")
        scale = self._add("Squeeze", x, name, [rows, self._last], f"{x}:scale")
        shape = self._add("Shape", x, name, [scale], f"{x}:tokens")
        zeros = self._add("Expand", x, name, [zero, shape], f"{x}:zeros")
        quantized = self._add("QuantizeLinear", x, name, [values, scale, zeros], f"{x}:uint8")
        self.nodes[-1].attribute.append(helper.make_attribute("axis", 0))
        return _Activation(quantized, rows, zero)

    def _with_least(self, layer: LinearLayer, weight: str, channels: str, added: list[str]) -> list[str]:
        """What is added to a product: the bias, less what the weights make of `_GELU_LEAST`."""
        values, scales = (numpy_helper.to_array(self._weights[name]) for name in (weight, channels))
        bias = -_GELU_LEAST * values.sum(axis=0, dtype=np.int64) * scales
        vectors = [name for name in added if self._is_vector(name)]
        for name in vectors:
            bias = bias + numpy_helper.to_array(self._weights[name])
        own = self._constant(f"{layer.node}:least", bias.astype(np.float32))
        return [own, *(name for name in added if name not in vectors)]

    def _weight(self, layer: LinearLayer) -> tuple[str, str]:
        exact = numpy_helper.to_array(self._weights[layer.weight])
        values, channels = self.rounded.get(layer.weight) or quantize_weight(exact, layer.axis)
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


CPU = Scheme(
    precision="fp32",
    prepare=prepare,
    rewrite=to_integers,
    calibrated=False,
    enough_rows=_ENOUGH_ROWS,
)
