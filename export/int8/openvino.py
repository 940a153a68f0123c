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

from nopad.export.graph.stored_weights import depths, store_weights
from nopad.export.int8.cpu import prepare
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

    Returns what the manifest says of it. Every layer becomes int8: the parity gate judges them. Raises `ExportError`.
    """
    model = read_model(graph)
    rounded = prepare(model, batches, progress)
    rewritten = ir.from_proto(model)
    sums = depths(rewritten.graph)
    modules = store_weights(rewritten.graph, "int8", rounded)
    write_model(ir.to_proto(rewritten), output)
    onnx.checker.check_model(str(output))
    group = next((size for size in _GROUPS if all(depth % size == 0 for depth in sums)), 0)
    tokens = sum(batch.num_tokens for batch in batches)
    return {"int8": list(modules), "kept": [], "weight_bits": 8, "scales": "group", "group": group, "tokens": tokens}
