"""The files of a bundle, one function each: ONNX graphs, quantized graphs, weights for torch, built engines."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Sequence
from pathlib import Path

from nopad.export.engines.tensorrt import BuildOptions, BuiltEngine, build_engine, engine_name, require_buildable
from nopad.export.graph.onnx import GraphTarget, export_graph
from nopad.export.graph.padded import PaddedEncoder, export_padded
from nopad.export.graph.precision import cast
from nopad.export.int8.cpu import CPU
from nopad.export.int8.openvino import quantize_for_openvino
from nopad.export.int8.qdq import TENSORRT
from nopad.export.int8.quantize import label_reader, quantize
from nopad.export.parity.samples import SAMPLES
from nopad.export.progress import Progress
from nopad.export.targets import EngineJob
from nopad.model.checkpoint.load import Checkpoint
from nopad.model.checkpoint.save import own_json, write_checkpoint
from nopad.model.checkpoint.sentence_transformers import Pipeline
from nopad.model.config import EncoderConfig
from nopad.model.head import Task
from nopad.model.packing import PackedBatch, pack, plan_batches, round_up
from nopad.runtime.atomic import sha256_of
from nopad.runtime.bundle import Bundle, write_manifest
from nopad.runtime.data.labelled import check_pairs
from nopad.runtime.data.records import read_rows
from nopad.runtime.data.table import DataSource
from nopad.runtime.engines.hardware import Precision
from nopad.runtime.engines.tensorrt_library import this_platform
from nopad.runtime.errors import InputFileError, TextError, UsageError
from nopad.runtime.manifest import Artifact, FileRecord
from nopad.runtime.planning.search import default_profiles
from nopad.runtime.profiles import ShapeProfile
from nopad.runtime.tokenizer import open_encoder
from nopad.runtime.types import Text

# Texts that int8 is calibrated on: more would hardly change the scales, and each costs a forward pass.
CALIBRATION_TEXTS = 512
_CALIBRATION_TOKENS = 2048


def write_graph(checkpoint: Checkpoint, folder: Path, precision: Precision, target: GraphTarget = "onnx") -> Artifact:
    """Write the graph for `target` in `precision` into the bundle's folder."""
    file = folder / _graph_name(precision, target)
    padded = isinstance(checkpoint.encoder, PaddedEncoder)
    if isinstance(checkpoint.encoder, PaddedEncoder):
        graph = export_padded(checkpoint.encoder, file)
    elif target == "openvino":
        graph = export_graph(checkpoint.encoder, file, target=target, store=precision)
    else:
        graph = export_graph(cast(checkpoint.encoder, precision), file, target=target)
    return Artifact(
        file=graph.file.name,
        target=target,
        precision=precision,
        layout="padded" if padded else "packed",
        inputs=graph.inputs,
        outputs=graph.outputs,
        token_multiple=graph.token_multiple,
        opset=graph.opset,
        exporter="padded" if padded else "nopad",
    )


def _graph_name(precision: str, target: GraphTarget) -> str:
    kind = ([target] if target != "onnx" else []) + ([precision] if precision != "fp32" else [])
    return ".".join(["model", *kind, "onnx"])


def write_int8_graph(
    checkpoint: Checkpoint,
    folder: Path,
    target: GraphTarget,
    calibrate: Sequence[Text] | None,
    max_length: int,
    progress: Progress,
    written: Sequence[Artifact] = (),
) -> Artifact:
    """Write a target's int8 graph, made from its fp32 one (`cpu`, `openvino`), or the fp16 one for TensorRT (`onnx`).

    That graph is read from the bundle's folder if it is among the files `written` so far; else it is made for this.
    What it costs is measured on the texts of `calibrate`; TensorRT's scales are found on them, and the CPU's weights
    are rounded for them. Without (not for TensorRT) the parity gate's sentences show which layers are sensitive.
    """
    cpu = target == "cpu"
    multiple = checkpoint.config.block if target == "onnx" else 1
    batches = _calibration_batches(checkpoint, folder, calibrate, max_length, multiple)
    output = folder / _graph_name("int8", target)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".int8.") as scratch:
        precision: Precision = "fp16" if target == "onnx" else "fp32"
        there = [one for one in written if (one.target, one.precision) == (target, precision)]
        exact = there[0] if there else write_graph(checkpoint, Path(scratch), precision, target)
        graph_file = (folder if there else Path(scratch)) / exact.file
        if target == "openvino":
            figures = quantize_for_openvino(graph_file, output, batches, progress)
            return dataclasses.replace(exact, file=output.name, precision="int8", quantized=figures)
        scheme = CPU if cpu else TENSORRT
        graph = quantize(
            scheme,
            graph_file,
            output,
            batches,
            labels_of=label_reader(checkpoint.head),
            embeddings=checkpoint.head.task == "embeddings",
            progress=progress,
        )
    return dataclasses.replace(exact, file=output.name, precision="int8", quantized=graph.to_json())


def calibration_texts(
    source: DataSource | str, task: Task, text_field: str | None, second_field: str | None
) -> list[Text]:
    """The texts that int8 is calibrated on: the first rows of a source that have one, pairs with a `second_field`.

    Raises `InputFileError`, `UsageError`.
    """
    check_pairs(task, second_field)
    texts: list[Text] = []
    reason = ""
    for row in read_rows(source, text_field, second_field, option="--text-field"):
        if row.error is None:
            texts.append(row.text)
        reason = reason or (f" (line {row.line}: {row.error})" if row.error is not None else "")
        if len(texts) == CALIBRATION_TEXTS:
            break
    if not texts:
        name = source.path if isinstance(source, DataSource) else source
        raise InputFileError(f"{name} has no texts to calibrate on{reason}; give a file with a column `text`")
    return texts


def _calibration_batches(
    checkpoint: Checkpoint, folder: Path, texts: Sequence[Text] | None, max_length: int, multiple: int
) -> list[PackedBatch]:
    """Texts as the runtime will read them: through the bundle's tokenizer, after its default prompt; not those that
    the runtime refuses.
    """
    encoder = open_encoder(folder / "tokenizer.json", max_length, vocab_size=checkpoint.config.vocab_size)
    pipeline = checkpoint.pipeline or Pipeline()
    prompt = pipeline.prompts[pipeline.default_prompt_name] if pipeline.default_prompt_name is not None else ""
    answered = encoder.encode(SAMPLES if texts is None else texts, prompt)
    encoded = [tokens for tokens in answered if not isinstance(tokens, TextError)]
    if not encoded:
        raise InputFileError(f"--calibrate: none of its texts can be read; the first: {answered[0]}")
    lengths = [tokens.used for tokens in encoded]
    batches = []
    for batch in plan_batches(lengths, token_budget=_CALIBRATION_TOKENS, max_sequences=64):
        members = [encoded[i] for i in batch]
        batches.append(
            pack(
                [tokens.input_ids for tokens in members],
                [tokens.token_type_ids for tokens in members],
                multiple=multiple,
                filler_id=checkpoint.config.pad_token_id or 0,
                prompt_lengths=[tokens.prompt_length for tokens in members],
            )
        )
    return batches


def write_torch(checkpoint: Checkpoint, folder: Path, precision: Precision, like: Artifact) -> Artifact:
    """Write the weights for the torch engine as a checkpoint folder of their own; its inputs are those of `like`."""
    weights = folder / "torch"
    weights.mkdir()
    config = checkpoint.config
    raw = {**checkpoint.raw_config, "nopad": own_json(config)}  # what transformers' own keys cannot say
    write_checkpoint(cast(checkpoint.encoder, precision), raw, weights)
    return dataclasses.replace(
        like,
        file="torch/model.safetensors",
        target="torch",
        precision=precision,
        token_multiple=config.block,
        opset=None,
        quantized=None,
    )


def check_jobs(
    jobs: Sequence[EngineJob],
    precision: str,
    profiles: Sequence[ShapeProfile],
    options: BuildOptions,
    config: EncoderConfig,
) -> None:
    """Refuse, before the slow steps, what `add_engine` could not build for an encoder with this `config`.

    Raises `UsageError`, `ExportError`.
    """
    for job in jobs:
        require_buildable(job.target, job.sm, precision, options)
    positions = config.max_position_embeddings
    for number, profile in enumerate(profiles if jobs else (), 1):
        if profile.longest[2] > round_up(positions, config.block):
            raise UsageError(
                f"profile {number}: longest max {profile.longest[2]} is beyond the model's max_position_embeddings "
                f"{positions}"
            )


def add_engine(
    bundle: Bundle,
    job: EngineJob,
    profiles: Sequence[ShapeProfile],
    options: BuildOptions,
    progress: Progress,
) -> tuple[Bundle, BuiltEngine]:
    """Build one engine from the bundle's last ONNX graph into its folder, and list it in the manifest."""
    manifest = bundle.manifest
    graph = [artifact for artifact in manifest.artifacts if artifact.target == "onnx"][-1]
    chosen = tuple(profiles) or default_profiles(
        manifest.max_length, architecture=manifest.architecture, block=graph.token_multiple
    )
    runs_on = "sm80+" if options.hardware_compatible else job.sm
    name = engine_name(job.target, runs_on, graph.precision, chosen)
    built = build_engine(
        bundle.file(graph.file),
        bundle.file(name),
        target=job.target,
        sm=job.sm,
        precision=graph.precision,
        profiles=chosen,
        inputs=graph.inputs,
        outputs=graph.outputs,
        token_multiple=graph.token_multiple,
        options=options,
        progress=progress,
    )
    artifact = dataclasses.replace(
        graph,
        file=name,
        target=job.target,
        sm=runs_on,
        profiles=chosen,
        built_with=built.library,
        version_compatible=options.version_compatible,
        platform=this_platform(),
        opset=None,
        parity={},
    )
    record = FileRecord(sha256=sha256_of(bundle.file(name)), bytes=built.bytes)
    manifest = dataclasses.replace(
        manifest, artifacts=(*manifest.artifacts, artifact), files={**manifest.files, name: record}
    )
    return write_manifest(bundle.path, manifest), built
