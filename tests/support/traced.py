"""Tracing is nine tenths of a small export, and always makes the same file: one trace for equal encoders of a run."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch

import nopad.export.graph.onnx as exporter
from nopad.export.graph.onnx import Graph, GraphTarget, export_graph
from nopad.model.encoder import PackedEncoder
from nopad.runtime.engines.hardware import Precision

Once = Callable[[str, Callable[[Path], None]], Path]
LARGEST = 50_000_000  # bytes of weights that are worth keeping a second time


def traced_once(once: Once) -> Callable[..., Graph]:
    """`export_graph` that copies the file which it made before of the same encoder, under the same name."""

    def export(encoder: PackedEncoder, path: Path, *, target: GraphTarget = "onnx", store: Precision = "fp32") -> Graph:
        large = sum(tensor.nbytes for tensor in encoder.parameters()) > LARGEST
        if large or encoder.attention is not None:  # another attention's code is no part of the digest
            return export_graph(encoder, path, target=target, store=store)

        def make(folder: Path) -> None:
            graph = asdict(export_graph(encoder, folder / path.name, target=target, store=store))
            (folder / "graph.json").write_text(json.dumps({**graph, "file": path.name}))

        kept = once(f"graph-{_digest(encoder, target, store, path.name)}", make)
        for file in kept.glob(f"{path.name}*"):
            shutil.copyfile(file, path.with_name(file.name))
        return Graph(**{**json.loads((kept / "graph.json").read_text()), "file": path})

    return export


def _digest(encoder: PackedEncoder, *settings: str) -> str:
    """Of all that the graph is made of: modules, configuration, weights and tables, and which of them are tied."""
    own = [name for name, _ in encoder.named_parameters()]
    digest = hashlib.sha256(repr((settings, exporter.INLINE_BYTES, encoder, encoder.encoder_config, own)).encode())
    for tensors in (encoder.named_parameters(remove_duplicate=False), encoder.named_buffers()):
        for name, tensor in tensors:
            digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
            digest.update(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
