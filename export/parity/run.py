"""The gate on a bundle: the reference opened from the checkpoint's files, then each artifact on an engine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from nopad.export.parity.gate import run_gate
from nopad.export.parity.probes import make_probes
from nopad.export.progress import Progress, silent
from nopad.export.reference.plain import plain_folder
from nopad.export.reference.setfit import SetFitReference
from nopad.export.reference.transformers import Reference
from nopad.model.checkpoint.setfit import classifier_of, is_setfit
from nopad.model.checkpoint.source import Source
from nopad.model.head import Task
from nopad.runtime.bundle import Bundle, record_parity, record_probes
from nopad.runtime.errors import BundleError, EnvironmentProblem
from nopad.runtime.manifest import Artifact, Manifest
from nopad.runtime.predictor import load

Report = dict[str, Any]  # a ParityReport as JSON, with the `file` and the `engine` that were gated


@contextmanager
def open_reference(
    source: Source, manifest: Manifest, *, allow_pickle: bool = False, progress: Progress = silent
) -> Iterator[Reference]:
    """The judge of a bundle with this manifest: the checkpoint as transformers opens it.

    It reads the files of `source` again, by itself, so that a fault of our readers cannot hide. `allow_pickle` opens a
    SetFit model's classifier. Raises `CheckpointError`, `ExportError`.
    """
    progress("parity: opening transformers")
    setfit = manifest.task == "text-classification" and is_setfit(source.folder)
    task: Task = "embeddings" if setfit else manifest.task
    with plain_folder(source, task) as (plain, versions):
        if setfit:
            classifier, _ = classifier_of(source.folder, None, allow_pickle)
            reference: Reference = SetFitReference(plain, classifier, manifest.overrides)
        else:
            reference = Reference(plain, task, overrides=manifest.overrides)
        reference.versions |= versions
        yield reference


def gate_bundle(
    bundle: Bundle,
    reference: Reference,
    *,
    engine: str = "auto",
    file: str | None = None,
    precision: str | None = None,
    threads: int | None = None,
    allow_host_code: bool = False,
    **options: Any,
) -> Report:
    """Run the parity gate on a bundle (or one file of it). `options` go to `run_gate`.

    Returns the report as JSON, with the `file` and the `engine` that were gated. There is no fallback: no other engine
    answers in its place.
    """
    with load(
        bundle.path,
        engine=engine,
        precision=precision,
        file=file,
        allow_unverified=True,
        allow_host_code=allow_host_code,
        threads=threads,
        fallback=False,
    ) as model:
        report = run_gate(model, reference, **options).to_json()
        quantized = model.artifact.quantized
        if quantized and quantized.get("passed") is False and report["evaluation"] is None:
            note = "int8 changes too many labels of the calibration texts; data with labels may prove it good (--data)"
            row = {"check": "calibration", "case": "labels", "value": quantized.get("agreement"), "bound": 1.0}
            report |= {"passed": False, "rows": [*report["rows"], {**row, "passed": False, "note": note}]}
        return {"file": model.artifact.file, "engine": model.status().engine, **report}


def gate_every_file(
    bundle: Bundle, reference: Reference, *, threads: int | None, thorough: bool, progress: Progress
) -> tuple[Bundle, dict[str, Report], tuple[str, ...]]:
    """Gate every artifact on its target's own engine, where that runs here, and record the verdicts and probes.

    Returns the bundle with the verdicts, the reports by "file on engine", and why other files were not gated.
    """
    bundle = record_probes(bundle, make_probes(bundle, reference))
    reports: dict[str, Report] = {}
    ungated = []
    for artifact in bundle.manifest.artifacts:
        engine = _own_engine(artifact)
        try:
            report = gate_bundle(
                bundle,
                reference,
                engine=engine,
                file=artifact.file,
                threads=threads,
                allow_host_code=True,  # we have just built it
                thorough=thorough,
                progress=progress,
            )
        except (EnvironmentProblem, BundleError) as error:
            if engine == "onnx-cpu":
                raise
            ungated.append(f"{artifact.file} is not gated here: {error}; run nopad parity --engine {engine} there")
            continue
        bundle = record_parity(bundle, artifact.file, engine, report)
        reports[f"{artifact.file} on {engine}"] = report
    return bundle, reports, tuple(ungated)


def _own_engine(artifact: Artifact) -> str:
    if artifact.target not in ("cpu", "onnx"):
        return artifact.target  # the engine has its name
    return "onnx-cuda" if artifact.precision == "bf16" else "onnx-cpu"  # whose kernels lack bf16
