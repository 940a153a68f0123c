"""Graphs that other libraries export by themselves: optimum-intel, and sentence-transformers' two backends."""

from __future__ import annotations

import importlib
import shutil
import time
import warnings
from pathlib import Path
from typing import Any

from nopad.runtime.engines.openvino import without_telemetry

# Classes of optimum-intel, by task.
OV_CLASSES = {
    "text-classification": "OVModelForSequenceClassification",
    "rerank": "OVModelForSequenceClassification",
    "token-classification": "OVModelForTokenClassification",
    "fill-mask": "OVModelForMaskedLM",
    "token-embeddings": "OVModelForFeatureExtraction",
}


def export(kind: str, source: Path, folder: Path, task: str) -> dict[str, Any]:
    """Export `source` into `folder`, whole or not at all. Returns `build_seconds` and `file_bytes`."""
    write = _optimum_intel if kind == "optimum-intel" else _sentence_transformers
    scratch = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(scratch, ignore_errors=True)
    try:
        with warnings.catch_warnings(), without_telemetry():
            warnings.simplefilter("ignore")
            seconds = write(source, scratch, task if kind == "optimum-intel" else kind.removeprefix("st-"))
        shutil.rmtree(folder, ignore_errors=True)
        scratch.rename(folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    graphs = [file for ending in ("onnx", "xml", "bin") for file in folder.rglob(f"*.{ending}")]
    return {"build_seconds": seconds, "file_bytes": sum(file.stat().st_size for file in graphs)}


def _optimum_intel(source: Path, folder: Path, task: str) -> float:
    kind: Any = getattr(importlib.import_module("optimum.intel"), OV_CLASSES[task])
    start = time.perf_counter()
    kind.from_pretrained(source, export=True, compile=False, local_files_only=True).save_pretrained(folder)
    seconds = time.perf_counter() - start
    for file in source.glob("*token*"):
        shutil.copyfile(file, folder / file.name)
    return seconds


def _sentence_transformers(source: Path, folder: Path, backend: str) -> float:
    library: Any = importlib.import_module("sentence_transformers")
    start = time.perf_counter()
    model = library.SentenceTransformer(
        str(source), backend=backend, device="cpu", local_files_only=True, model_kwargs={"export": True}
    )
    model.save_pretrained(str(folder))
    return time.perf_counter() - start
