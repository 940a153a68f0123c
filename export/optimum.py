"""Padded bundles of any architecture that optimum-onnx exports, for encoders that nopad has no packed form of."""

from __future__ import annotations

import shutil
import tempfile
import warnings
from pathlib import Path

from nopad.export.errors import ExportError
from nopad.export.provenance import created, source_of
from nopad.export.tokenizer import max_length_of, write_tokenizer
from nopad.model.checkpoint.json_files import read_raw_config
from nopad.model.checkpoint.read_head import detect_task, read_head
from nopad.model.checkpoint.source import open_source
from nopad.model.head import Task
from nopad.model.packages import install_hint
from nopad.runtime.bundle import Bundle, record_files, write_manifest
from nopad.runtime.errors import EnvironmentProblem
from nopad.runtime.manifest import Artifact, Manifest

OPSET = 18
_TASKS = {
    "text-classification": "text-classification",
    "rerank": "text-classification",
    "token-classification": "token-classification",
    "fill-mask": "fill-mask",
}


def write_optimum_bundle(checkpoint: Path, folder: Path, *, task: Task | None, max_length: int | None) -> Bundle:
    """Export `checkpoint` with optimum-onnx into an existing, empty folder (no parity gate).

    Raises `EnvironmentProblem` without optimum-onnx, `ExportError` for a task or architecture it does not do.
    """
    try:
        from optimum.exporters.onnx import main_export
    except ImportError as error:
        raise EnvironmentProblem(
            f"--exporter optimum needs optimum-onnx ({error}). It pins transformers below 4.58, so give it an "
            f"environment of its own: {install_hint('optimum')}"
        ) from None
    raw = read_raw_config(checkpoint)
    source = open_source(checkpoint)  # refuses pickles
    if source.adapter is not None:
        raise ExportError(f"--exporter optimum merges no adapters; merge {checkpoint} with PEFT first")
    task = task or detect_task(raw)
    if task not in _TASKS:
        raise ExportError(f"--exporter optimum has no {task}; it has {', '.join(_TASKS)}")
    head = read_head(raw, task)
    tokenizer = write_tokenizer(checkpoint, folder, raw.get("vocab_size"))
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                main_export(
                    str(checkpoint),
                    scratch,
                    task=_TASKS[task],
                    opset=OPSET,
                    device="cpu",
                    do_validation=False,
                    no_post_process=True,
                )
        except (ValueError, RuntimeError, KeyError, NotImplementedError) as error:
            raise ExportError(f"optimum-onnx could not export {checkpoint}: {error}") from error
        for file in Path(scratch).iterdir():
            if file.name.startswith("model.onnx"):
                shutil.move(file, folder / file.name)
    inputs, outputs = _interface(folder / "model.onnx")
    artifact = Artifact(
        file="model.onnx",
        target="onnx",
        precision="fp32",
        layout="padded",
        inputs=inputs,
        outputs=outputs,
        opset=OPSET,
        exporter="optimum",
    )
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
        artifacts=(artifact,),
        files=record_files(folder),
    )
    return write_manifest(folder, manifest)


def _interface(path: Path) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    import onnx

    graph = onnx.load(str(path), load_external_data=False).graph
    inputs, outputs = (
        {v.name: [d.dim_param or str(d.dim_value) for d in v.type.tensor_type.shape.dim] for v in values}
        for values in (graph.input, graph.output)
    )
    return inputs, outputs
