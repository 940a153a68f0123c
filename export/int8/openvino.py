"""int8 for OpenVINO: int8 matrices and embeddings in its fp32 graph; it rounds activations itself, as it multiplies.

The graph is prepared as for ONNX Runtime (`nopad.export.int8.cpu.prepare`): outliers of norms go into the weights,
which are rounded by what the layers read on texts.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir

from nopad.export.graph.stored_weights import store_bf16
from nopad.export.int8.cpu import prepare
from nopad.export.int8.embeddings import round_embeddings
from nopad.export.int8.linear_layers import drop_unread, linear_layers, modules_of
from nopad.export.int8.qdq import dequantize_weights
from nopad.export.int8.sessions import read_model, write_model
from nopad.export.progress import Progress
from nopad.model.packing import PackedBatch

# Activations that OpenVINO rounds with one scale. It rounds none where a row is not a multiple; larger groups are a
# little faster, and less exact (docs/int8.md).
_GROUPS = (128, 64, 32)


def quantize_for_openvino(
    graph: Path, output: Path, batches: Sequence[PackedBatch], progress: Progress
) -> dict[str, Any]:
    """Write the int8 form of OpenVINO's fp32 graph at `graph` to `output`; `batches` of texts show what layers read.

    Every layer becomes int8, and every table of embeddings, but for one that a decoder reads as well: that is bf16, as
    decoders are. Returns what the manifest says of it; the parity gate judges it. Raises `ExportError`.
    """
    model = read_model(graph)
    rounded = prepare(model, batches, progress)
    layers = linear_layers(model)
    shapes = {tensor.name: tensor.dims for tensor in model.graph.initializer}
    sums = {shapes[layer.weight][1 - layer.axis] for layer in layers}  # over so many inputs
    dequantize_weights(model, layers, rounded)
    drop_unread(model.graph)
    round_embeddings(model, least=0)
    rewritten = ir.from_proto(model)
    store_bf16(rewritten.graph, read_by="decoder")
    write_model(ir.to_proto(rewritten), output)
    onnx.checker.check_model(str(output))
    return {
        "int8": list(modules_of(layers)),
        "kept": [],
        "weight_bits": 8,
        "scales": "group",
        "group": next((size for size in _GROUPS if all(length % size == 0 for length in sums)), 0),
        "tokens": sum(batch.num_tokens for batch in batches),
    }
