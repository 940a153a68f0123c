"""TensorRT's parsed network, checked before it is built: inputs and outputs, and every type that the policy decides.

A strongly typed network runs in the graph's own types, so a wrong graph (exported in another precision, or changed
since) would be built without an error and answer differently. Knows no files and builds nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from nopad.export.errors import ExportError
from nopad.export.graph.node_names import in_layer, is_decoder
from nopad.export.graph.precision import POLICIES, Dtype, Policy

# Layers that multiply matrices, then those that decide accuracy; names of `LayerType` in both libraries.
_PRODUCTS = ("MATRIX_MULTIPLY", "CONVOLUTION", "DECONVOLUTION", "EINSUM", "ATTENTION_INPUT")
_NORMS = ("NORMALIZATION",)
_SOFTMAX = ("SOFTMAX", "RAGGED_SOFTMAX")
_QUANTIZERS = ("QUANTIZE", "DEQUANTIZE", "DYNAMIC_QUANTIZE")
_WORST = 3  # violations that a message lists


def check_network(
    trt: Any,
    network: Any,
    *,
    inputs: Mapping[str, Sequence[str]],
    outputs: Mapping[str, Sequence[str]],
    precision: str,
) -> dict[str, int]:
    """Compare a parsed network with the manifest (`inputs`, `outputs`: name -> symbolic shape) and with the policy.

    Returns the number of layers of each type. Raises `ExportError` that names what differs.
    """
    policy = POLICIES[precision]
    _check_tensors("input", [network.get_input(i) for i in range(network.num_inputs)], inputs, trt.DataType.INT64)
    results = [network.get_output(i) for i in range(network.num_outputs)]
    _check_tensors("output", results, outputs, _dtypes(trt)[policy.logits])
    counts: Counter[str] = Counter()
    wrong: list[str] = []
    for number in range(network.num_layers):
        layer = network.get_layer(number)
        kind = layer.type.name
        counts[kind] += 1
        wrong += _violations(trt, layer, kind, policy)
    if wrong:
        more = f", and {len(wrong) - _WORST} more" if len(wrong) > _WORST else ""
        raise ExportError(
            f"the graph is not typed as {precision} is: {'; '.join(wrong[:_WORST])}{more}. Export the checkpoint again "
            f"with --precision {precision}"
        )
    if not any(counts[kind] for kind in _PRODUCTS):
        raise ExportError("the graph has no matrix product: it is not an encoder; export the checkpoint again")
    if (precision == "int8") != any(counts[kind] for kind in _QUANTIZERS):
        has = "no quantized layer" if precision == "int8" else "quantized layers"
        raise ExportError(f"the graph has {has}, so it is not {precision}; export the checkpoint again")
    return dict(sorted(counts.items()))


def _dtypes(trt: Any) -> dict[Dtype, Any]:
    return {"fp32": trt.DataType.FLOAT, "fp16": trt.DataType.HALF, "bf16": trt.DataType.BF16}


def _check_tensors(side: str, tensors: list[Any], expected: Mapping[str, Sequence[str]], dtype: Any) -> None:
    by_name = {tensor.name: tensor for tensor in tensors}
    if set(by_name) != set(expected):
        raise ExportError(
            f"the graph's {side}s are {', '.join(sorted(by_name)) or 'none'}, the manifest says "
            f"{', '.join(sorted(expected))}: not the graph of this bundle; export the checkpoint again"
        )
    for name, sizes in expected.items():
        tensor = by_name[name]
        shape = tuple(tensor.shape)
        # A symbolic size may be any (-1); an output's fixed size may be known only when it runs.
        fits = len(shape) == len(sizes) and all(
            size == -1 or (stated.isdigit() and size == int(stated)) for size, stated in zip(shape, sizes, strict=True)
        )
        if tensor.dtype != dtype or not fits:
            raise ExportError(
                f"{side} {name} is {tensor.dtype.name} {list(shape)}, the manifest says {dtype.name} {list(sizes)}: "
                "not the graph of this bundle; export the checkpoint again"
            )


def _violations(trt: Any, layer: Any, kind: str, policy: Policy) -> Iterator[str]:
    if kind in _PRODUCTS:
        dtype = _product(layer.name, policy)
    elif kind in _NORMS:
        dtype = policy.norms
    elif kind in _SOFTMAX:
        dtype = policy.softmax
    else:
        return
    tensors = [layer.get_input(i) for i in range(layer.num_inputs)]
    tensors += [layer.get_output(i) for i in range(layer.num_outputs)]
    for tensor in tensors:
        if tensor is not None and tensor.dtype != _dtypes(trt)[dtype]:
            yield f"{layer.name} has {tensor.dtype.name}, not {dtype}"
            return


def _product(name: str, policy: Policy) -> Dtype:
    if in_layer(name):
        return policy.layers
    return policy.decoder if is_decoder(name) else policy.head
