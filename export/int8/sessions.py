"""Graphs on their way to int8: read, written, and run on the CPU in ONNX Runtime, in floating point.

Knows neither operators nor scales; batches come packed.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx.external_data_helper import load_external_data_for_model

from nopad.export.errors import ExportError
from nopad.export.graph.onnx import EXTERNAL_SUFFIX, INLINE_BYTES
from nopad.model.packing import PackedBatch
from nopad.runtime.engines.onnx_session import exact_int8, session_options

_KEPT_VALUES = 1 << 20  # logits of a batch that are compared: fill-mask has a vocabulary of them for every token

Logits = npt.NDArray[np.float32]


def read_model(graph: Path) -> onnx.ModelProto:
    """The graph with its weights. Raises `ExportError`."""
    try:
        return onnx.load(str(graph))
    except Exception as error:  # protobuf's own, and the file system's
        raise ExportError(f"cannot read {graph} ({error}); export the checkpoint again") from None


def write_model(model: onnx.ModelProto, path: Path) -> None:
    """Write `model`, its weights beside it where they are too large for one file; they stay in memory too."""
    if sum(len(tensor.raw_data) for tensor in model.graph.initializer) <= INLINE_BYTES:
        onnx.save_model(model, str(path))
        return
    onnx.save_model(model, str(path), save_as_external_data=True, location=path.name + EXTERNAL_SUFFIX)
    shutil.copymode(path, path.with_name(path.name + EXTERNAL_SUFFIX))  # which onnx writes for its user alone
    load_external_data_for_model(model, str(path.parent))  # saving has moved the weights out of memory


def session_of(model: onnx.ModelProto) -> Any:
    """An ONNX Runtime session of a graph in memory."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        write_model(model, path)
        return open_session(path)


def open_session(path: Path) -> Any:
    """An ONNX Runtime session on the CPU that computes dequantized products in floating point.

    Raises `ExportError`.
    """
    import onnxruntime

    config = {"session.disable_quant_qdq": "1", **exact_int8()}  # dequantized products in floating point
    settings = session_options(onnxruntime, None, config)
    try:
        return onnxruntime.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])
    except Exception as error:  # ORT's exception types are not public
        raise ExportError(f"ONNX Runtime {onnxruntime.__version__} cannot open the graph for int8: {error}") from None


def feeds(session: Any, batch: PackedBatch) -> dict[str, Any]:
    """The arrays of a batch that the graph takes."""
    return {value.name: getattr(batch, value.name) for value in session.get_inputs() if hasattr(batch, value.name)}


def run(
    session: Any, batches: Sequence[PackedBatch], per_token: bool, inputs: Mapping[str, Any] | None = None
) -> list[Logits]:
    """Logits of each batch, of real tokens only where they are `per_token`."""
    out: list[Logits] = []
    for batch in batches:
        answer: Logits = session.run(["logits"], {**feeds(session, batch), **(inputs or {})})[0]
        out.append(thin(answer[: batch.num_tokens] if per_token else answer))
    return out


def thin(rows: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Every n-th of `rows`, so that at most `_KEPT_VALUES` logits remain."""
    step = -(-rows.size // _KEPT_VALUES)
    return rows[:: max(1, step)]


def is_per_token(model: onnx.ModelProto) -> bool:
    """Whether the graph has logits for every token."""
    return model.graph.output[0].type.tensor_type.shape.dim[0].dim_param == "tokens"


def spread(length: int, most: int) -> list[int]:
    """At most `most` of `length` indices of batches, evenly spread: batches are sorted by length."""
    return sorted({int(place) for place in np.linspace(0, length - 1, min(length, most))})
