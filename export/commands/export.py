"""`nopad export`."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nopad.export.commands.gate_report import print_report, set_threads, source_options, thorough_option
from nopad.export.targets import TARGETS
from nopad.model.config import POOLING_MODES
from nopad.model.head import TASKS
from nopad.runtime.bundle import MANIFEST
from nopad.runtime.console import (
    FILES,
    common_options,
    emit,
    field_options,
    messages,
    reading_options,
    status,
    threads_option,
)
from nopad.runtime.data.table import DataSource
from nopad.runtime.engines.hardware import PRECISIONS

if TYPE_CHECKING:
    from rich.console import Console

    from nopad.export.bundle import ExportResult
    from nopad.export.triton import TritonRepository


def _precisions(context: click.Context, option: click.Parameter, value: str | None) -> tuple[str, ...] | None:
    return _names(value, PRECISIONS) if value is not None else None


def _targets(context: click.Context, option: click.Parameter, value: str) -> tuple[str, ...]:
    return _names(value, TARGETS)


def _names(value: str, known: Sequence[str]) -> tuple[str, ...]:
    """The names of a list with commas. Raises `click.BadParameter` for one that is not `known`."""
    names = tuple(name.strip() for name in value.split(","))
    for name in names:
        if name not in known:
            raise click.BadParameter(f"{name!r} is not one of {', '.join(known)}.")
    return names


@click.command()
@click.argument("checkpoint")
@click.option(
    "--target",
    metavar=f"[{'|'.join(TARGETS)}],..",
    callback=_targets,
    default="cpu",
    show_default=True,
    help="cpu: for ONNX Runtime on CPUs. openvino: for OpenVINO on CPUs, the fastest in bf16 and int8. "
    "onnx: plain ONNX, for ONNX Runtime on a GPU and other tools. "
    "tensorrt: an engine for the GPU at hand. tensorrt-rtx: engines for --arch, built "
    "without a GPU. torch: weights for PyTorch flash attention. all: cpu, onnx, torch, and the "
    "engines that this machine can build. cpu, openvino and onnx may share a bundle: cpu,openvino.",
)
@click.option(
    "--precision",
    metavar=f"[{'|'.join(PRECISIONS)}],..",
    callback=_precisions,
    help="fp16 is for GPUs; bf16 for GPUs, --target openvino, and --target cpu, where OpenVINO computes it; int8 for "
    "--target cpu, --target openvino and, with --calibrate, for engines. "
    "[default: fp32; fp16 for engines]",
)
@click.option(
    "--arch", metavar="SM,..", help="GPUs to build for: sm75,sm86,sm89,sm120. [default: the one at hand, or all]"
)
@click.option("--profiles", type=click.Path(path_type=Path), help="Shapes to build for: a file of nopad plan.")
@click.option(
    "--calibrate",
    metavar="FILE",
    help=f"Texts that int8 is made for and judged on: {FILES}. [default for cpu: the gate's few sentences]",
)
@reading_options
@field_options("--calibrate")
@click.option("--timing-cache", type=click.Path(path_type=Path), help="Kernel timings to start from and add to.")
@click.option(
    "--workspace", type=click.IntRange(min=1), metavar="MIB", help="GPU memory a kernel may use. [default: all]"
)
@click.option(
    "--version-compatible",
    is_flag=True,
    help="Engines that later TensorRT versions run: with native code, so opened only with --allow-host-code.",
)
@click.option("--hardware-compatible", is_flag=True, help="Engines that Ampere and every newer GPU runs; not T4.")
@click.option(
    "--exporter",
    type=click.Choice(["auto", "nopad", "padded", "optimum"]),
    default="auto",
    show_default=True,
    help="nopad: packed (ModernBERT, BERT, EuroBERT, UltraBERT). padded: any encoder that transformers opens and torch "
    "exports (RoBERTa, XLM-R, DistilBERT, ELECTRA, DeBERTa, ...). auto: packed where nopad can, else padded. "
    "optimum: padded, by optimum-onnx (transformers 4.57).",
)
@click.option("--output", "-o", type=click.Path(path_type=Path), help="Bundle folder to write.  [required]")
@click.option(
    "--triton",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="Write a model repository for NVIDIA Triton into DIR. CHECKPOINT may then be a bundle, of which --target and "
    "--precision choose the file; of a checkpoint it is made of --output.",
)
@click.option(
    "--task",
    type=click.Choice(TASKS),
    help="If config.json does not tell. token-embeddings: the last hidden state of every token. "
    "[default: from config.json]",
)
@click.option("--pooling", type=click.Choice(POOLING_MODES), help="Of embeddings. [default: from the checkpoint]")
@click.option("--normalize/--no-normalize", default=None, help="Unit-length embeddings. [default: from the checkpoint]")
@click.option("--max-length", type=int, help="Tokens a text may have. [default: the tokenizer's limit]")
@source_options
@click.option(
    "--no-parity",
    is_flag=True,
    help="Skip the parity gate; the bundle stays unverified. With --triton, take a bundle that has not passed it.",
)
@thorough_option
@common_options
@threads_option
@click.pass_context
def export(
    context: click.Context,
    /,
    checkpoint: str,
    output: Path | None,
    triton: Path | None,
    arch: str | None,
    profiles: Path | None,
    calibrate: str | None,
    encoding: str | None,
    columns: tuple[str, ...],
    timing_cache: Path | None,
    workspace: int | None,
    version_compatible: bool,
    hardware_compatible: bool,
    no_parity: bool,
    as_json: bool,
    quiet: bool,
    threads: int | None,
    **fields: Any,  # of `ExportOptions`, by name
) -> int:
    """Export CHECKPOINT (a folder, or a Hugging Face Hub name) to a bundle, and prove its parity.

    The exit code is 1 if the bundle fails the parity gate; it is then written, but marked unverified.

    With --triton DIR, CHECKPOINT may be a bundle: nopad export --triton models/ bundle/
    """
    if triton is not None and (Path(checkpoint) / MANIFEST).is_file():
        return _write_triton(context, Path(checkpoint), triton)
    if triton is not None and output is None:
        raise click.UsageError(
            f"--triton: {checkpoint} is no bundle, it has no {MANIFEST}; of a checkpoint a bundle is made first: name "
            "its folder with --output",
            context,
        )
    if output is None:
        raise click.MissingParameter(ctx=context, param_hint="'--output' / '-o'", param_type="option")
    from nopad.export.bundle import ExportOptions, export_checkpoint
    from nopad.export.engines.tensorrt import BuildOptions
    from nopad.export.triton import write_triton
    from nopad.runtime.profiles import read_profiles

    set_threads(threads)
    console = messages(quiet)
    options = ExportOptions(
        archs=[name.strip().lower() for name in arch.split(",") if name.strip()] if arch else [],
        profiles=read_profiles(profiles) if profiles is not None else (),
        calibrate=DataSource(path=calibrate, encoding=encoding, columns=columns) if calibrate is not None else None,
        build=BuildOptions(
            timing_cache=timing_cache,
            workspace_bytes=workspace << 20 if workspace else None,
            version_compatible=version_compatible,
            hardware_compatible=hardware_compatible,
        ),
        parity=not no_parity,
        threads=threads,
        **fields,
    )
    with status(console) as progress:
        result = export_checkpoint(checkpoint, output, options, progress=progress)
    for remark in result.remarks:
        console.print(f"note: {remark}", style="yellow")
    for reason in result.skipped:
        console.print(f"not here: {reason}", style="yellow")
    if as_json:
        emit(_to_json(result, output))
    else:
        _print(result, output)
    if triton is not None and result.passed:
        _tell(write_triton(output, triton, allow_unverified=no_parity), console, as_json)
    return 0 if result.passed else 1


# What may be said of a bundle beside --triton.
_OF_BUNDLES = {"checkpoint", "triton", "target", "precision", "no_parity", "as_json", "quiet", "threads"}


def _write_triton(context: click.Context, bundle: Path, repository: Path) -> int:
    """Write a finished bundle's model repository. Raises `click.UsageError` for options of an export."""
    from nopad.export.triton import write_triton

    commandline = click.core.ParameterSource.COMMANDLINE
    given = {each.name or "": each for each in context.command.params}
    given = {name: each for name, each in given.items() if context.get_parameter_source(name) is commandline}
    other = [max(each.opts, key=len) for name, each in given.items() if name not in _OF_BUNDLES]
    if other:
        raise click.UsageError(f"{bundle} is a bundle already, and {', '.join(other)} exports a checkpoint", context)
    values = context.params
    chosen = {name: values[name] for name in ("target", "precision") if name in given}
    written = write_triton(bundle, repository, allow_unverified=values["no_parity"], **chosen)
    _tell(written, messages(values["quiet"]), values["as_json"])
    return 0


def _tell(written: TritonRepository, console: Console, as_json: bool) -> None:
    for remark in written.remarks:
        console.print(f"note: {remark}", style="yellow")
    if as_json:
        emit({"triton": written.to_json()})
    else:
        graph = f"{written.graph} ({written.backend}: {written.file})"
        click.echo(f"{written.folder}: {written.model} (texts) and {graph}")


def _to_json(result: ExportResult, output: Path) -> dict[str, Any]:
    return {
        "bundle": str(output),
        "verdict": result.bundle.manifest.verdict,
        "export_seconds": round(result.export_seconds, 2),
        "parity_seconds": round(result.parity_seconds, 2),
        "bytes": result.bytes,
        "engines": [dataclasses.asdict(engine) for engine in result.engines],
        "skipped": result.skipped,
        "remarks": result.remarks,
        "parity": result.report,
        "reports": result.reports,
    }


def _print(result: ExportResult, output: Path) -> None:
    manifest, size, seconds = result.bundle.manifest, result.bytes / 1e6, result.export_seconds
    artifacts = ", ".join(f"{a.target} {a.precision}{f' {a.sm}' if a.sm else ''}" for a in manifest.artifacts)
    click.echo(f"{output}: {artifacts}, {size:.1f} MB, exported in {seconds:.1f} s, {manifest.verdict}")
    for engine in result.engines:
        click.echo(f"  {engine.file}: {engine.bytes / 1e6:.1f} MB, built in {engine.seconds:.1f} s")
    for name, report in result.reports.items():
        click.echo(name)
        print_report(report, None)
    if result.reports:
        click.echo(f"parity took {result.parity_seconds:.1f} s")
