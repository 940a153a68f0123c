"""Padded bundles of any architecture that optimum-onnx exports, for encoders without a packed form in nopad."""

from __future__ import annotations

import shutil
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nopad.export.errors import ExportError
from nopad.export.provenance import created, source_of
from nopad.export.tokenizer import max_length_of, write_tokenizer
from nopad.model.checkpoint.read_head import detect_task, read_head
from nopad.model.checkpoint.source import Source
from nopad.model.head import Task
from nopad.model.packages import install_hint
from nopad.runtime.bundle import Bundle, record_files, write_manifest
from nopad.runtime.errors import EnvironmentProblem
from nopad.runtime.manifest import Artifact, Manifest

OPSET = 18
GRAPH = "model.onnx"
_TASKS = {
    "text-classification": "text-classification",
    "rerank": "text-classification",
    "token-classification": "token-classification",
    "fill-mask": "fill-mask",
}


def write_optimum_bundle(source: Source, folder: Path, *, task: Task | None, max_length: int | None) -> Bundle:
    """Export the checkpoint of `source` with optimum-onnx into an existing, empty folder (no parity gate).

    Raises `EnvironmentProblem` without optimum-onnx, `ExportError` for a task or architecture that it does not support.
    """
    main_export = _import_optimum()
    raw = source.raw_config
    if source.adapter is not None:
        raise ExportError(f"--exporter optimum merges no adapters; merge {source.folder} with PEFT first")
    task = task or detect_task(raw)
    if task not in _TASKS:
        raise ExportError(f"--exporter optimum has no {task}; it has {', '.join(_TASKS)}")
    head = read_head(raw, task)
    tokenizer = write_tokenizer(source.home, folder, raw.get("vocab_size"))
    _write_graph(main_export, source.home, folder, _TASKS[task])
    positions = int(raw.get("max_position_embeddings") or raw.get("n_positions") or 512)
    manifest = Manifest(
        task=task,
        labels=head.labels,
        problem_type=head.problem_type,
        max_length=max_length_of(max_length, tokenizer.limit, positions),
        pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else raw.get("pad_token_id") or 0,
        mask_token=tokenizer.mask_token,
        architecture={"model_type": raw.get("model_type"), "max_position_embeddings": positions},
        source=source_of(source),
        created=created(),
        artifacts=(_artifact(folder / GRAPH),),
        files=record_files(folder),
    )
    return write_manifest(folder, manifest)


def _import_optimum() -> Any:
    try:
        from optimum.exporters.onnx import main_export
    except ImportError as error:
        raise EnvironmentProblem(
            f"--exporter optimum needs optimum-onnx ({error}). It pins transformers below 4.58, so give it an "
            f"environment of its own: {install_hint('optimum')}"
        ) from None
    return main_export


def _write_graph(main_export: Any, checkpoint: Path, folder: Path, task: str) -> None:
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                main_export(
                    str(checkpoint),
                    scratch,
                    task=task,
                    opset=OPSET,
                    device="cpu",
                    do_validation=False,
                    no_post_process=True,
                )
        except (ValueError, RuntimeError, KeyError, NotImplementedError) as error:
            raise ExportError(f"optimum-onnx could not export {checkpoint}: {error}") from error
        for file in Path(scratch).iterdir():
            if file.name.startswith(GRAPH):  # and its external data
                shutil.move(file, folder / file.name)


def _artifact(path: Path) -> Artifact:
    import onnx

    graph = onnx.load(str(path), load_external_data=False).graph
    return Artifact(
        file=path.name,
        target="onnx",
        precision="fp32",
        layout="padded",
        inputs=_shapes(graph.input),
        outputs=_shapes(graph.output),
        opset=OPSET,
        exporter="optimum",
    )


def _shapes(values: Sequence[Any]) -> dict[str, list[str]]:
    return {v.name: [d.dim_param or str(d.dim_value) for d in v.type.tensor_type.shape.dim] for v in values}
