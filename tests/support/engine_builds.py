"""Graphs of small encoders, and engines that TensorRT-RTX builds of them for any GPU."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from reference_models import BERT, CASES, MODERNBERT

from nopad.export.engines.tensorrt import BuiltEngine, build_engine
from nopad.export.graph.onnx import Graph, export_graph
from nopad.export.graph.precision import cast
from nopad.model.checkpoint.read_config import read_config
from nopad.model.encoder import build_encoder
from nopad.runtime.profiles import ShapeProfile

WIDE = ShapeProfile(tokens=(64, 1024, 4096), sequences=(1, 8, 64), longest=(1, 128, 1024))
# One global layer, then two local ones, with base's head size: TensorRT has fused attention for few others.
LAYERS, HEAD_SIZE = 3, 64
Graphs = Callable[[str], Graph]


def write(case_name: str, precision: str, path: Path, **config: Any) -> Graph:
    case = CASES[case_name]
    raw = {**(MODERNBERT if case.architecture == "modernbert" else BERT), **case.config, **config}
    torch.manual_seed(0)
    encoder = build_encoder(read_config(raw, **{"task": case.task, **case.load}))  # type: ignore[arg-type]
    return export_graph(cast(encoder, precision), path)  # type: ignore[arg-type]


def build(graph: Graph, output: Path, sm: str, precision: str, **changes: Any) -> BuiltEngine:
    options: dict[str, Any] = {
        "target": "tensorrt-rtx",
        "profiles": [WIDE],
        "inputs": graph.inputs,
        "outputs": graph.outputs,
        "token_multiple": graph.token_multiple,
    }
    return build_engine(graph.file, output, sm=sm, precision=precision, **(options | changes))
