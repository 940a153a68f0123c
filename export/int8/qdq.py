"""int8 for TensorRT: Q/DQ pairs around the linear layers of a packed fp16 graph.

Both inputs of a quantized product pass QuantizeLinear and DequantizeLinear in fp16: the weight symmetric per output
channel and stored as int8, the activation symmetric per tensor. A strongly typed TensorRT network follows from it: the
product runs in int8, its output and its bias are fp16.

Why a pass of our own. ONNX Runtime's quantizer (`quantize_static` of 1.32, with QuantizeBias off, DedicatedQDQPair and
outputs excluded) makes the same pairs, but every other reader of a quantized tensor gets them too:
`model.layers.0/Add` then adds the residual stream rounded to int8, and in post-norm encoders (BERT) so do all layers.
Its calibrators choose tensors by operator type (heads and weights as well) and hold the activations of all texts in
memory. nvidia-modelopt 0.47 needs onnx 1.21, onnxruntime-gpu 1.24 and CuPy for this.

Trials run in ONNX Runtime on the CPU, with dequantized products in floating point: their sums are exact, as on a GPU,
whereas x86 int8 kernels may saturate.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from nopad.export.int8.linear_layers import LinearLayer, drop_unread
from nopad.export.int8.quantize import Scheme
from nopad.export.int8.rounding import Rounded
from nopad.export.int8.scales import Scales, quantize_weight


def dequantize_weights(
    model: onnx.ModelProto, layers: Sequence[LinearLayer], rounded: Mapping[str, Rounded] | None = None
) -> None:
    """Let each of `layers` read its matrix from int8 and a scale for each output channel, in place.

    `rounded`: weights by name that are not rounded to the nearest. The matrices themselves are not removed.
    """
    graph = model.graph
    by_node = {layer.node: layer for layer in layers}
    weights = {tensor.name: tensor for tensor in graph.initializer}
    nodes: dict[str, onnx.NodeProto] = {}  # by weight: several layers may share one
    for node in graph.node:
        layer = by_node.get(node.name)
        if layer is None:
            continue
        w = layer.weight
        if w not in nodes:
            pair = (rounded or {}).get(w) or quantize_weight(numpy_helper.to_array(weights[w]), layer.axis)
            names = [f"{w}_int8", f"{w}_scale"]
            graph.initializer.extend(map(numpy_helper.from_array, pair, names))
            output = [f"{w}_dequantized"]
            nodes[w] = helper.make_node("DequantizeLinear", names, output, f"{w}/DequantizeLinear", axis=layer.axis)
        node.input[1] = nodes[w].output[0]
    rest = list(graph.node)
    del graph.node[:]
    graph.node.extend([*nodes.values(), *rest])


def insert_qdq(
    model: onnx.ModelProto,
    layers: Sequence[LinearLayer],
    scales: Scales | None,
    rounded: Mapping[str, Rounded] | None = None,
) -> None:
    """Put Q/DQ before both inputs of each of `layers`, in place; other readers of a tensor keep it as it is.

    With `scales` None the graph becomes a trial: scales (`scale:TENSOR`, fp16 []) and a switch for each layer
    (`int8:MODULE`, bool []) are inputs. `rounded`: weights by name that are not rounded to the nearest.
    """
    dequantize_weights(model, layers, rounded)
    graph = model.graph
    by_node = {layer.node: layer for layer in layers}
    nodes: list[onnx.NodeProto] = []
    replaced: dict[str, str] = {}  # tensor -> its dequantized form; query, key and value share one activation

    def constant(name: str, values: npt.NDArray[Any]) -> str:
        graph.initializer.append(numpy_helper.from_array(values, name))
        return name

    def argument(name: str, kind: int) -> str:
        graph.input.append(helper.make_tensor_value_info(name, kind, []))
        return name

    def add(operator: str, module: str, inputs: list[str], output: str) -> str:
        nodes.append(helper.make_node(operator, inputs, [output], f"{module}/{operator}"))
        return output

    zero = constant("int8_zero", np.array(0, dtype=np.int8))  # its type is QuantizeLinear's output type
    for node in graph.node:
        layer = by_node.get(node.name)
        if layer is not None:
            x = layer.activation
            if x not in replaced:
                scale = constant(f"{x}_scale", scales[x]) if scales else argument(f"scale:{x}", TensorProto.FLOAT16)
                quantized = add("QuantizeLinear", layer.module, [x, scale, zero], f"{x}_int8")
                replaced[x] = add("DequantizeLinear", layer.module, [quantized, scale], f"{x}_dequantized")
            node.input[0] = replaced[x]
            if scales is None:
                switch = argument(f"int8:{layer.module}", TensorProto.BOOL)
                for index, plain in enumerate((x, layer.weight)):
                    choice = [switch, node.input[index], plain]
                    node.input[index] = add("Where", f"{layer.module}:{index}", choice, f"{switch}:{index}")
        nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)
    drop_unread(graph)


TENSORRT = Scheme(precision="fp16", rewrite=insert_qdq)
