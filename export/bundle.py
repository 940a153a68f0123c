"""Checkpoint -> verified bundle folder, all or nothing."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from nopad.export.bundle_files import (
    add_engine,
    calibration_texts,
    check_jobs,
    write_graph,
    write_int8_graph,
    write_torch,
)
from nopad.export.engines.tensorrt import BuildOptions, BuiltEngine
from nopad.export.errors import ExportError
from nopad.export.graph.onnx import GraphTarget
from nopad.export.graph.padded import load_padded
from nopad.export.parity.run import Report, gate_every_file, open_reference
from nopad.export.progress import Progress, silent
from nopad.export.provenance import created, source_of
from nopad.export.targets import Jobs, Target, plan_jobs
from nopad.export.tokenizer import BundleTokenizer, max_length_of, write_tokenizer
from nopad.model.checkpoint.hub import resolve_checkpoint
from nopad.model.checkpoint.load import Checkpoint, load_checkpoint
from nopad.model.checkpoint.sentence_transformers import Pipeline
from nopad.model.checkpoint.source import Source, open_source
from nopad.model.config import ARCHITECTURES, EncoderConfig, Pooling
from nopad.model.head import PER_TOKEN, Task
from nopad.runtime.atomic import check_output, replace_folder
from nopad.runtime.bundle import MANIFEST, TUNING, Bundle, open_bundle, record_files, recorded_files, write_manifest
from nopad.runtime.data.table import DataSource
from nopad.runtime.engines.gpus import gpu_at_hand
from nopad.runtime.engines.hardware import Precision
from nopad.runtime.errors import UsageError
from nopad.runtime.manifest import Artifact, FileRecord, Manifest
from nopad.runtime.profiles import ShapeProfile
from nopad.runtime.types import Text

Exporter = Literal["auto", "nopad", "padded", "optimum"]


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """Options of an export; the defaults are the command's."""

    # What goes into the bundle.
    target: Target | Sequence[Target] = "cpu"  # several of cpu, openvino and onnx
    precision: Precision | Sequence[Precision] | None = None
    archs: Sequence[str] = ()  # GPUs to build engines for
    profiles: Sequence[ShapeProfile] = ()  # of the engines; none: `planning.search.default_profiles`
    calibrate: DataSource | str | None = None  # texts, for int8
    text_field: str | None = None  # of calibrate
    second_field: str | None = None  # of calibrate, where it has pairs
    build: BuildOptions = BuildOptions()
    exporter: Exporter = "auto"
    max_length: int | None = None  # tokens of a text; None: the tokenizer's limit
    # How the checkpoint is read; None: as its files say.
    task: Task | None = None
    pooling: Pooling | None = None
    normalize: bool | None = None
    base: str | Path | None = None  # folder or Hub name of a LoRA adapter's base
    allow_pickle: bool = False  # open a SetFit model's classifier, which can run code
    # How it is judged.
    parity: bool = True
    thorough: bool = False  # as `nopad.export.parity.gate.run_gate` has it
    threads: int | None = None


@dataclass(frozen=True, kw_only=True)
class ExportResult:
    """The bundle that an export wrote, and its figures."""

    bundle: Bundle
    reports: dict[str, Report]  # "file on engine" -> its report; empty where the gate was skipped
    skipped: tuple[str, ...]  # what was not built or not gated here, and why
    remarks: tuple[str, ...]  # what was chosen for the user, left out of the checkpoint, or guessed
    engines: tuple[BuiltEngine, ...]
    export_seconds: float  # loading, tracing, writing, building
    parity_seconds: float
    bytes: int  # of the whole bundle

    @property
    def report(self) -> Report | None:
        """The report of the first graph."""
        return next(iter(self.reports.values()), None)

    @property
    def passed(self) -> bool:
        """Whether no check of the gate has failed."""
        return all(report["passed"] for report in self.reports.values())


def export_checkpoint(
    name: str | Path, output: Path, options: ExportOptions | None = None, *, progress: Progress = silent
) -> ExportResult:
    """Export a checkpoint folder (or Hub name) to a bundle at `output` and run the parity gate on it.

    A LoRA adapter is merged into the base that it names, or into `options.base`.
    A bundle that fails the gate is written too, marked `unverified`; look at `passed`. On any error, and on Ctrl-C,
    nothing is left at `output` that was not there before.
    Raises `CheckpointError`, `ExportError`, `OutputError`, `UsageError`, `EnvironmentProblem`.
    """
    options = options or ExportOptions()
    own = _own_files(output)
    check_output(output, MANIFEST, own)
    jobs = _plan(options)
    source = open_source(resolve_checkpoint(name), options.base)
    exporter, remarks = _choose_exporter(options, source)
    start = time.perf_counter()
    with replace_folder(output, marker=MANIFEST, known=own) as folder:
        written = _WRITERS[exporter](source, folder, options, jobs, progress)
        exported = time.perf_counter()
        bundle = open_bundle(folder)
        reports: dict[str, Report] = {}
        ungated: tuple[str, ...] = ()
        if options.parity:
            opened = open_reference(source, bundle.manifest, allow_pickle=options.allow_pickle, progress=progress)
            with opened as reference:
                bundle, reports, ungated = gate_every_file(
                    bundle, reference, threads=options.threads, thorough=options.thorough, progress=progress
                )
    end = time.perf_counter()
    return ExportResult(
        bundle=dataclasses.replace(bundle, path=output),
        reports=reports,
        skipped=(*jobs.skipped, *ungated),
        remarks=(*remarks, *written.remarks),
        engines=written.engines,
        export_seconds=exported - start,
        parity_seconds=end - exported,
        bytes=sum(record.bytes for record in bundle.manifest.files.values()),
    )


def _plan(options: ExportOptions) -> Jobs:
    """The files to write. Refuses what can never be written, before any file is read."""
    _require_fp32_onnx(options.exporter, options)
    jobs = plan_jobs(options.target, options.precision, options.archs, sm=gpu_at_hand)
    if "int8" in jobs.graphs and options.calibrate is None:
        raise UsageError("--precision int8 for engines needs texts to find its scales on: --calibrate FILE")
    if options.calibrate is not None and "int8" not in (*jobs.cpu, *jobs.openvino, *jobs.graphs):
        raise UsageError("--calibrate is for --precision int8")
    if options.calibrate is None and (options.text_field or options.second_field):
        raise UsageError("--text-field and --second-field are of the texts of --calibrate FILE")
    return jobs


def _require_fp32_onnx(exporter: Exporter, options: ExportOptions) -> None:
    """Refuse targets and precisions that a padded bundle cannot have. `auto` is checked once it is resolved."""
    padded = exporter in ("padded", "optimum")
    targets = (options.target,) if isinstance(options.target, str) else options.target
    if padded and (
        any(target not in ("cpu", "onnx") for target in targets) or options.precision not in (None, "fp32", ("fp32",))
    ):
        raise ExportError(
            f"a padded bundle (--exporter {exporter}) is fp32 ONNX; int8, fp16, bf16 and engines need --exporter "
            f"nopad, for architectures that it packs: {', '.join(ARCHITECTURES)}"
        )


def _choose_exporter(options: ExportOptions, source: Source) -> tuple[Exporter, tuple[str, ...]]:
    """The packed exporter where the architecture has a packed encoder, else the padded one, with a remark."""
    if options.exporter != "auto":
        return options.exporter, ()
    kind = source.raw_config.get("model_type")
    if not isinstance(kind, str) or kind in ARCHITECTURES:
        return "nopad", ()
    _require_fp32_onnx("padded", options)
    remark = (
        f"{kind} has no packed encoder in nopad, so the bundle is padded (--exporter padded): the same answers, but "
        "short texts are filled up to the longest of their batch; fp32 only"
    )
    return "padded", (remark,)


def _own_files(output: Path) -> frozenset[str]:
    """The files of the bundle at `output`, damaged or not: only these may be replaced."""
    recorded = recorded_files(output)
    return recorded | {MANIFEST, TUNING} if recorded else recorded


@dataclass(frozen=True, kw_only=True)
class _Written:
    """What an exporter reports of the bundle that it wrote."""

    remarks: tuple[str, ...] = ()
    engines: tuple[BuiltEngine, ...] = ()


def _write_packed(source: Source, folder: Path, options: ExportOptions, jobs: Jobs, progress: Progress) -> _Written:
    checkpoint = _load(load_checkpoint, source, options, progress)
    if jobs.engines:
        check_jobs(jobs.engines, jobs.graphs[-1], options.profiles, options.build, checkpoint.config)
    texts = None
    if options.calibrate is not None:
        task = checkpoint.config.task
        texts = calibration_texts(options.calibrate, task, options.text_field, options.second_field)
    bundle = write_bundle(
        checkpoint,
        folder,
        cpu=jobs.cpu,
        openvino=jobs.openvino,
        graphs=jobs.graphs,
        torch=jobs.torch,
        max_length=options.max_length,
        calibrate=texts,
        progress=progress,
    )
    engines = []
    for job in jobs.engines:
        bundle, built = add_engine(bundle, job, options.profiles, options.build, progress)
        engines.append(built)
    return _Written(remarks=checkpoint.remarks, engines=tuple(engines))


def _write_padded(source: Source, folder: Path, options: ExportOptions, jobs: Jobs, progress: Progress) -> _Written:
    checkpoint = _load(load_padded, source, options, progress)
    write_bundle(checkpoint, folder, cpu=(), graphs=("fp32",), max_length=options.max_length, progress=progress)
    return _Written(remarks=checkpoint.remarks)


def _write_optimum(source: Source, folder: Path, options: ExportOptions, jobs: Jobs, progress: Progress) -> _Written:
    from nopad.export.optimum import write_optimum_bundle

    progress("exporting the graph with optimum")
    write_optimum_bundle(source, folder, task=options.task, max_length=options.max_length)
    return _Written()


_WRITERS: dict[Exporter, Callable[[Source, Path, ExportOptions, Jobs, Progress], _Written]] = {
    "nopad": _write_packed,
    "padded": _write_padded,
    "optimum": _write_optimum,
}


def _load(load: Callable[..., Checkpoint], source: Source, options: ExportOptions, progress: Progress) -> Checkpoint:
    progress("loading the checkpoint")
    return load(
        source,
        task=options.task,
        pooling=options.pooling,
        normalize=options.normalize,
        allow_pickle=options.allow_pickle,
    )


_FOR: dict[GraphTarget, str] = {"cpu": " for CPUs", "openvino": " for OpenVINO", "onnx": ""}


def write_bundle(
    checkpoint: Checkpoint,
    folder: Path,
    *,
    cpu: Sequence[Precision] = ("fp32",),
    openvino: Sequence[Precision] = (),
    graphs: Sequence[Precision] = (),
    torch: Precision | None = None,
    max_length: int | None = None,
    calibrate: Sequence[Text] | None = None,
    progress: Progress = silent,
) -> Bundle:
    """Write the bundle of a loaded checkpoint into an existing, empty folder (no engines, no parity gate).

    `cpu` are the precisions of its graphs for ONNX Runtime on CPUs, `openvino` of those for OpenVINO, `graphs` of its
    plain ONNX files, `torch` is that of the torch engine's weights (None: without them). `calibrate`: texts for int8.
    """
    source, config, pipeline = checkpoint.source, checkpoint.config, checkpoint.pipeline or Pipeline()
    assert source is not None, "a bundle names the files that it comes from"
    tokenizer = write_tokenizer(source.tokenizer, folder, config.vocab_size, lower_case=pipeline.do_lower_case)
    limit = max_length_of(max_length, pipeline.max_seq_length or tokenizer.limit, config.max_position_embeddings)
    artifacts: list[Artifact] = []
    graph_jobs: list[tuple[GraphTarget, Precision]] = [
        *(("cpu", name) for name in cpu),
        *(("openvino", name) for name in openvino),
        *(("onnx", name) for name in graphs),
    ]
    for target, precision in graph_jobs:
        progress(f"exporting the graph{_FOR[target]} in {precision}")
        if precision == "int8":
            artifacts.append(write_int8_graph(checkpoint, folder, target, calibrate, limit, progress, artifacts))
        else:
            artifacts.append(write_graph(checkpoint, folder, precision, target))
    if torch is not None:
        progress("writing the weights for torch")
        artifacts.append(write_torch(checkpoint, folder, torch, artifacts[-1]))
    if max_length is not None:
        checkpoint = dataclasses.replace(checkpoint, overrides={**checkpoint.overrides, "max_length": max_length})
    return write_manifest(folder, _manifest(checkpoint, source, tokenizer, limit, artifacts, record_files(folder)))


def _manifest(
    checkpoint: Checkpoint,
    source: Source,
    tokenizer: BundleTokenizer,
    max_length: int,
    artifacts: Sequence[Artifact],
    files: Mapping[str, FileRecord],
) -> Manifest:
    config, pipeline = checkpoint.config, checkpoint.pipeline or Pipeline()
    return Manifest(
        task=config.task,
        labels=config.labels,
        problem_type=config.problem_type,
        pooling=None if config.task in PER_TOKEN else config.pooling,
        normalize=config.normalize,
        include_prompt=config.include_prompt,
        truncate_dim=config.truncate_dim,
        prompts=pipeline.prompts,
        default_prompt_name=pipeline.default_prompt_name,
        similarity_fn_name=pipeline.similarity_fn_name,
        activation=checkpoint.activation,
        overrides=checkpoint.overrides,
        max_length=max_length,
        pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else config.pad_token_id or 0,
        mask_token=tokenizer.mask_token,
        architecture=_summary(config, checkpoint.raw_config.get("model_type")),
        source=source_of(source),
        created=created(),
        artifacts=tuple(artifacts),
        files=files,
    )


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
