"""Checkpoint -> verified bundle folder, all or nothing."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from nopad.export.bundle_files import (
    GraphTarget,
    add_engine,
    check_jobs,
    write_graph,
    write_int8_graph,
    write_torch,
)
from nopad.export.engines.tensorrt import BuildOptions, BuiltEngine
from nopad.export.errors import ExportError
from nopad.export.graph.padded import load_padded
from nopad.export.parity.gate import run_gate
from nopad.export.progress import Progress, silent
from nopad.export.provenance import created, source_of
from nopad.export.reference.plain import plain_folder
from nopad.export.reference.setfit import SetFitReference
from nopad.export.reference.transformers import CLASSES, Reference
from nopad.export.targets import Target, plan_jobs
from nopad.export.tokenizer import lower_case, max_length_of, write_tokenizer
from nopad.model.checkpoint.hub import resolve_checkpoint
from nopad.model.checkpoint.load import Checkpoint, load_checkpoint
from nopad.model.checkpoint.sentence_transformers import Pipeline
from nopad.model.checkpoint.setfit import classifier_of, is_setfit
from nopad.model.checkpoint.source import open_source
from nopad.model.config import ARCHITECTURES, EncoderConfig, Pooling
from nopad.model.head import Task
from nopad.runtime.atomic import check_output, replace_folder
from nopad.runtime.bundle import MANIFEST, Bundle, open_bundle, record_files, record_parity, write_manifest
from nopad.runtime.data.table import DataSource
from nopad.runtime.engines.gpus import gpu_at_hand
from nopad.runtime.engines.hardware import Precision
from nopad.runtime.errors import BundleError, EnvironmentProblem, UsageError
from nopad.runtime.manifest import Manifest
from nopad.runtime.predictor import load
from nopad.runtime.profiles import ShapeProfile

Exporter = Literal["auto", "nopad", "padded", "optimum"]


@dataclass(frozen=True, kw_only=True)
class ExportResult:
    """What an export made."""

    bundle: Bundle
    reports: dict[str, dict[str, Any]]  # "file on engine" -> ParityReport as JSON; empty where the gate was skipped
    skipped: tuple[str, ...]  # what was not built or not gated here, and why
    remarks: tuple[str, ...]  # what was chosen for the user, left out of the checkpoint, or guessed
    engines: tuple[BuiltEngine, ...]
    export_seconds: float  # loading, tracing, writing, building
    parity_seconds: float
    bytes: int  # of the whole bundle

    @property
    def report(self) -> dict[str, Any] | None:
        """The report of the first graph."""
        return next(iter(self.reports.values()), None)

    @property
    def passed(self) -> bool:
        """Whether no check of the gate has failed."""
        return all(report["passed"] for report in self.reports.values())


def export_checkpoint(
    name: str | Path,
    output: Path,
    *,
    target: Target = "cpu",
    precision: Precision | Sequence[Precision] | None = None,
    archs: Sequence[str] = (),
    profiles: Sequence[ShapeProfile] = (),
    calibrate: DataSource | str | None = None,
    build: BuildOptions | None = None,
    exporter: Exporter = "auto",
    task: Task | None = None,
    pooling: Pooling | None = None,
    normalize: bool | None = None,
    max_length: int | None = None,
    parity: bool = True,
    thorough: bool = False,
    threads: int | None = None,
    base: str | Path | None = None,
    allow_pickle: bool = False,
    progress: Progress = silent,
) -> ExportResult:
    """Export a checkpoint folder (or Hub name) to a bundle at `output` and run the parity gate on it.

    `target`, `precision` and `archs` are what `nopad.export.targets.plan_jobs` makes of them; `profiles` are the
    engines' (default: `planning.search.default_profiles`); `calibrate` is a file of texts, for int8; `thorough`
    is the gate's (`nopad.export.parity.gate.run_gate`).
    A LoRA adapter is merged into the base that it names, or into `base` (a folder or Hub name). `allow_pickle` opens
    a SetFit model's classifier, which can run code.
    A bundle that fails the gate is written too, marked `unverified`; look at `passed`. On any error, and on Ctrl-C,
    nothing is left at `output` that was not there before.
    Raises `CheckpointError`, `ExportError`, `OutputError`, `UsageError`, `EnvironmentProblem`.
    """
    own = _own_files(output)
    check_output(output, MANIFEST, own)
    _require_fp32_onnx(exporter, target, precision)
    jobs = plan_jobs(target, precision, archs, sm=gpu_at_hand)
    if "int8" in jobs.graphs and calibrate is None:
        raise UsageError("--precision int8 for engines needs texts to find its scales on: --calibrate FILE")
    if calibrate is not None and "int8" not in (*jobs.cpu, *jobs.graphs):
        raise UsageError("--calibrate is for --precision int8")
    folder = resolve_checkpoint(name)
    exporter, remarks = _choose_exporter(exporter, folder, base)
    _require_fp32_onnx(exporter, target, precision)
    start = time.perf_counter()
    options = build or BuildOptions()
    checkpoint = None
    if exporter != "optimum":
        progress("loading the checkpoint")
        opener = load_padded if exporter == "padded" else load_checkpoint
        checkpoint = opener(
            folder, task=task, pooling=pooling, normalize=normalize, base=base, allow_pickle=allow_pickle
        )
        if jobs.engines:
            check_jobs(jobs.engines, jobs.graphs[-1], profiles, options, checkpoint.config)
    with replace_folder(output, marker=MANIFEST, known=own) as made:
        engines: list[BuiltEngine] = []
        half_window = 64  # without windows, these lengths are as good as others
        if checkpoint is None:
            from nopad.export.optimum import write_optimum_bundle

            progress("exporting the graph with optimum")
            write_optimum_bundle(folder, made, task=task, max_length=max_length)
        else:
            write_bundle(
                checkpoint,
                made,
                cpu=jobs.cpu if exporter == "nopad" else (),
                graphs=jobs.graphs if exporter == "nopad" else ("fp32",),
                torch=jobs.torch,
                max_length=max_length,
                calibrate=calibrate,
                progress=progress,
            )
            written = open_bundle(made, verify=False)
            for job in jobs.engines:
                written, built = add_engine(written, job, profiles, options, progress)
                engines.append(built)
            half_window = checkpoint.config.half_window if exporter == "nopad" else half_window
        exported = time.perf_counter()
        bundle = open_bundle(made)
        reports: dict[str, dict[str, Any]] = {}
        ungated: tuple[str, ...] = ()
        if parity:
            asked = (base, allow_pickle, half_window, threads, thorough)
            bundle, reports, ungated = _gate_all(bundle, folder, *asked, progress)
    end = time.perf_counter()
    return ExportResult(
        bundle=dataclasses.replace(bundle, path=output),
        reports=reports,
        skipped=(*jobs.skipped, *ungated),
        remarks=(*remarks, *(checkpoint.remarks if checkpoint is not None else ())),
        engines=tuple(engines),
        export_seconds=exported - start,
        parity_seconds=end - exported,
        bytes=sum(record.bytes for record in bundle.manifest.files.values()),
    )


def _require_fp32_onnx(exporter: Exporter, target: Target, precision: Precision | Sequence[Precision] | None) -> None:
    """Refuse what a padded bundle cannot be. `auto` is judged when it is known what it takes."""
    padded = exporter in ("padded", "optimum")
    if padded and (target not in ("cpu", "onnx") or precision not in (None, "fp32", ("fp32",))):
        raise ExportError(
            f"a padded bundle (--exporter {exporter}) is fp32 ONNX; int8, fp16, bf16 and engines need --exporter "
            f"nopad, for architectures that it packs: {', '.join(ARCHITECTURES)}"
        )


def _choose_exporter(exporter: Exporter, folder: Path, base: str | Path | None) -> tuple[Exporter, tuple[str, ...]]:
    """The packed exporter where the architecture has a packed encoder, else the padded one, with a remark."""
    if exporter != "auto":
        return exporter, ()
    kind = open_source(folder, base).raw_config.get("model_type")
    if not isinstance(kind, str) or kind in ARCHITECTURES:
        return "nopad", ()
    remark = (
        f"{kind} has no packed encoder in nopad, so the bundle is padded (--exporter padded): the same answers, but "
        "short texts are filled up to the longest of their batch; fp32 only"
    )
    return "padded", (remark,)


def _gate_all(
    bundle: Bundle,
    checkpoint: Path,
    base: str | Path | None,
    allow_pickle: bool,
    half_window: int,
    threads: int | None,
    thorough: bool,
    progress: Progress,
) -> tuple[Bundle, dict[str, dict[str, Any]], tuple[str, ...]]:
    """Gate every artifact on the engine that is its own, where that can run here; why not the rest."""
    reports: dict[str, dict[str, Any]] = {}
    ungated = []
    for artifact in bundle.manifest.artifacts:
        onnx = "onnx-cuda" if artifact.precision == "bf16" else "onnx-cpu"  # whose kernels lack bf16
        engine = onnx if artifact.target in ("cpu", "onnx") else artifact.target
        try:
            report = gate_bundle(
                bundle,
                checkpoint,
                base=base,
                allow_pickle=allow_pickle,
                half_window=half_window,
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


def _own_files(output: Path) -> frozenset[str]:
    """The files of a bundle that stands at `output`, damaged or not: they may be replaced, and no others."""
    try:
        raw = json.loads((output / MANIFEST).read_bytes())
        ours = frozenset((MANIFEST, *raw["files"])) if isinstance(raw["format_version"], int) else frozenset()
    except (OSError, ValueError, KeyError, TypeError):
        return frozenset()
    return ours


def gate_bundle(
    bundle: Bundle,
    checkpoint: Path,
    *,
    half_window: int,
    engine: str = "auto",
    file: str | None = None,
    precision: str | None = None,
    threads: int | None = None,
    allow_host_code: bool = False,
    base: str | Path | None = None,
    allow_pickle: bool = False,
    progress: Progress = silent,
    **options: Any,
) -> dict[str, Any]:
    """Run the parity gate on a bundle (or one file of it) against its checkpoint. `options` go to `run_gate`.

    `base` is that of an adapter; `allow_pickle` opens a SetFit model's classifier.

    Returns the report as JSON, with the `file` and the `engine` that were asked. Only one engine is asked: none other
    answers for it.
    """
    progress("parity: opening transformers")
    manifest = bundle.manifest
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
        setfit = manifest.task == "text-classification" and is_setfit(checkpoint)
        task: Task = "embeddings" if setfit else manifest.task
        with plain_folder(checkpoint, task, CLASSES[task], base) as (plain, versions):
            reference = (
                SetFitReference(plain, classifier_of(checkpoint, None, allow_pickle)[0], manifest.overrides)
                if setfit
                else Reference(plain, task, overrides=manifest.overrides)
            )
            reference.versions |= versions
            report = run_gate(model, reference, half_window=half_window, progress=progress, **options).to_json()
        quantized = model.artifact.quantized
        if quantized and quantized.get("passed") is False and report["evaluation"] is None:
            note = "int8 changes too many labels of the calibration texts; data with labels may prove it good (--data)"
            row = {"check": "calibration", "case": "labels", "value": quantized.get("agreement"), "bound": 1.0}
            report |= {"passed": False, "rows": [*report["rows"], {**row, "passed": False, "note": note}]}
        return {"file": model.artifact.file, "engine": model.status().engine, **report}


def write_bundle(
    checkpoint: Checkpoint,
    folder: Path,
    *,
    cpu: Sequence[Precision] = ("fp32",),
    graphs: Sequence[Precision] = (),
    torch: Precision | None = None,
    max_length: int | None = None,
    calibrate: DataSource | str | None = None,
    progress: Progress = silent,
) -> Bundle:
    """Write the packed bundle of a loaded checkpoint into an existing, empty folder (no engines, no parity gate).

    `cpu` are the precisions of its graphs for CPUs, `graphs` those of its plain ONNX files, `torch` is that of the
    torch engine's weights, if it shall have any.
    """
    config = checkpoint.config
    said = checkpoint.pipeline or Pipeline()
    tokenizer = write_tokenizer(checkpoint.files, folder, config.vocab_size)
    if said.do_lower_case:
        lower_case(folder / "tokenizer.json")
    limit = max_length_of(max_length, said.max_seq_length or tokenizer.limit, config.max_position_embeddings)
    artifacts = []
    wanted: list[tuple[GraphTarget, Precision]] = [*(("cpu", one) for one in cpu), *(("onnx", one) for one in graphs)]
    for target, precision in wanted:
        progress(f"exporting the graph{' for CPUs' if target == 'cpu' else ''} in {precision}")
        if precision == "int8":
            artifacts.append(write_int8_graph(checkpoint, folder, target, calibrate, limit, progress))
        else:
            artifacts.append(write_graph(checkpoint, folder, precision, target))
    if torch is not None:
        progress("writing the weights for torch")
        artifacts.append(write_torch(checkpoint, folder, torch, artifacts[-1]))
    manifest = Manifest(
        task=config.task,
        labels=config.labels,
        problem_type=config.problem_type,
        pooling=config.pooling if config.task not in ("token-classification", "fill-mask") else None,
        normalize=config.normalize,
        include_prompt=config.include_prompt,
        truncate_dim=config.truncate_dim,
        prompts=said.prompts,
        default_prompt_name=said.default_prompt_name,
        similarity_fn_name=said.similarity_fn_name,
        activation=checkpoint.activation,
        overrides={**checkpoint.overrides, **({} if max_length is None else {"max_length": max_length})},
        max_length=limit,
        pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else config.pad_token_id or 0,
        mask_token=tokenizer.mask_token,
        architecture=_summary(config, checkpoint.raw_config.get("model_type")),
        source=source_of(checkpoint.source or open_source(checkpoint.path)),
        created=created(),
        artifacts=tuple(artifacts),
        files=record_files(folder),
    )
    return write_manifest(folder, manifest)


def _summary(config: EncoderConfig, model_type: Any) -> dict[str, Any]:
    if config.architecture == "other":
        positions = config.max_position_embeddings
        return {"model_type": model_type, "hidden_size": config.hidden_size, "max_position_embeddings": positions}
    names = ("vocab_size", "hidden_size", "intermediate_size", "num_layers", "num_heads", "local_attention")
    summary: dict[str, Any] = {name: getattr(config, name) for name in names}
    return {
        "model_type": config.architecture,
        **summary,
        "local_layers": [i for i, local in enumerate(config.local_layers) if local],
        "max_position_embeddings": config.max_position_embeddings,
    }
