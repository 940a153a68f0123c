"""`nopad export` and `nopad parity`."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from nopad.model.config import POOLING_MODES
from nopad.model.head import TASKS
from nopad.runtime.commands.console import FILES, common_options, emit, figure, messages, reading_options, status
from nopad.runtime.data.table import DataSource
from nopad.runtime.engines.base import ENGINES

PRECISIONS = ("fp32", "fp16", "bf16", "int8")


def _precisions(context: click.Context, option: click.Parameter, value: str | None) -> tuple[str, ...] | None:
    names = tuple(name.strip() for name in value.split(",")) if value is not None else ()
    for name in names:
        if name not in PRECISIONS:
            raise click.BadParameter(f"{name!r} is not one of {', '.join(PRECISIONS)}.")
    return names or None


_thorough = click.option(
    "--thorough",
    is_flag=True,
    help="Compare a text of the model's full length with transformers itself, which may take minutes. Without, the "
    "packed encoder is the reference where that is too long for transformers; the report says what was not asked.",
)


@click.command()
@click.argument("checkpoint")
@click.option(
    "--target",
    type=click.Choice(["cpu", "onnx", "torch", "tensorrt", "tensorrt-rtx", "all"]),
    default="cpu",
    show_default=True,
    help="cpu: the fastest on CPUs. onnx: plain ONNX, for ONNX Runtime on a GPU and other tools. "
    "tensorrt: an engine for the GPU at hand. tensorrt-rtx: engines for --arch, built "
    "without a GPU. torch: weights for PyTorch flash attention. all: what this machine can make.",
)
@click.option(
    "--precision",
    metavar="[fp32|fp16|bf16|int8],..",
    callback=_precisions,
    help="fp16 and bf16 are for GPUs; int8 is for --target cpu and, with --calibrate, for engines. "
    "[default: fp32; fp16 for engines]",
)
@click.option(
    "--arch", metavar="SM,..", help="GPUs to build for: sm75,sm86,sm89,sm120. [default: the one at hand, or all]"
)
@click.option("--profiles", type=click.Path(path_type=Path), help="Shapes to build for: a file of nopad plan.")
@click.option(
    "--calibrate",
    metavar="FILE",
    help=f"Texts that int8 scales are found on: {FILES}. [default for cpu: scales of each token]",
)
@reading_options
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
@click.option("--output", "-o", required=True, type=click.Path(path_type=Path), help="Bundle folder to write.")
@click.option("--task", type=click.Choice(TASKS), help="If config.json does not tell. [default: from config.json]")
@click.option("--pooling", type=click.Choice(POOLING_MODES), help="Of embeddings. [default: from the checkpoint]")
@click.option("--normalize/--no-normalize", default=None, help="Unit-length embeddings. [default: from the checkpoint]")
@click.option("--max-length", type=int, help="Tokens a text may have. [default: the tokenizer's limit]")
@click.option("--base", help="Folder or Hub name of a LoRA adapter's base. [default: the one that the adapter names]")
@click.option(
    "--allow-pickle",
    is_flag=True,
    help="Open the classifier of a SetFit model: a pickle, which can run code. Only for files that you trust.",
)
@click.option("--no-parity", is_flag=True, help="Skip the parity gate; the bundle stays unverified.")
@_thorough
@common_options
def export(
    checkpoint: str,
    target: Any,
    precision: Any,
    arch: str | None,
    profiles: Path | None,
    calibrate: str | None,
    encoding: str | None,
    columns: tuple[str, ...],
    timing_cache: Path | None,
    workspace: int | None,
    version_compatible: bool,
    hardware_compatible: bool,
    exporter: Any,
    output: Path,
    task: Any,
    pooling: Any,
    normalize: bool | None,
    max_length: int | None,
    base: str | None,
    allow_pickle: bool,
    no_parity: bool,
    thorough: bool,
    as_json: bool,
    quiet: bool,
    threads: int | None,
) -> int:
    """Export CHECKPOINT (a folder, or a Hugging Face Hub name) to a bundle, and prove its parity.

    The exit code is 1 if the bundle fails the parity gate; it is then written, but marked unverified.
    """
    from nopad.export.bundle import export_checkpoint
    from nopad.export.tensorrt import BuildOptions
    from nopad.runtime.profiles import read_profiles

    set_threads(threads)
    console = messages(quiet)
    shapes = read_profiles(profiles) if profiles is not None else ()
    with status(console) as progress:
        result = export_checkpoint(
            checkpoint,
            output,
            target=target,
            precision=precision,
            archs=[one.strip().lower() for one in arch.split(",") if one.strip()] if arch else [],
            profiles=shapes,
            calibrate=DataSource(path=calibrate, encoding=encoding, columns=columns) if calibrate is not None else None,
            build=BuildOptions(
                timing_cache=timing_cache,
                workspace_bytes=workspace << 20 if workspace else None,
                version_compatible=version_compatible,
                hardware_compatible=hardware_compatible,
            ),
            exporter=exporter,
            task=task,
            pooling=pooling,
            normalize=normalize,
            max_length=max_length,
            base=base,
            allow_pickle=allow_pickle,
            parity=not no_parity,
            thorough=thorough,
            threads=threads,
            progress=progress,
        )
    manifest = result.bundle.manifest
    for remark in result.remarks:
        console.print(f"note: {remark}", style="yellow")
    for reason in result.skipped:
        console.print(f"not here: {reason}", style="yellow")
    if as_json:
        emit(
            {
                "bundle": str(output),
                "verdict": manifest.verdict,
                "export_seconds": round(result.export_seconds, 2),
                "parity_seconds": round(result.parity_seconds, 2),
                "bytes": result.bytes,
                "engines": [dataclasses.asdict(engine) for engine in result.engines],
                "skipped": result.skipped,
                "remarks": result.remarks,
                "parity": result.report,
                "reports": result.reports,
            }
        )
    else:
        size, seconds = result.bytes / 1e6, result.export_seconds
        made = ", ".join(f"{a.target} {a.precision}{f' {a.sm}' if a.sm else ''}" for a in manifest.artifacts)
        click.echo(f"{output}: {made}, {size:.1f} MB, exported in {seconds:.1f} s, {manifest.verdict}")
        for engine in result.engines:
            click.echo(f"  {engine.file}: {engine.bytes / 1e6:.1f} MB, built in {engine.seconds:.1f} s")
        for name, report in result.reports.items():
            click.echo(name)
            print_report(report, None)
        if result.reports:
            click.echo(f"parity took {result.parity_seconds:.1f} s")
    return 0 if result.passed else 1


@click.command()
@click.argument("bundle")
@click.option("--reference", "-r", required=True, help="The checkpoint the bundle was exported from.")
@click.option("--data", metavar="FILE", help=f"Texts, labelled or not: {FILES}.")
@reading_options
@click.option("--text-field", help="Column, field or dotted path of the text in --data. [default: the usual names]")
@click.option(
    "--label-field",
    help="The same of the label: its name, or its number; or several, comma-separated, of zeros and ones. "
    "[default: the usual names]",
)
@click.option("--limit", type=click.IntRange(min=1), help="Only the first N rows of --data.")
@click.option("--engine", default="auto", help=f"Engine to check: auto, {', '.join(ENGINES)}.")
@click.option("--precision", help="Check the file of this precision. [default: what suits the engine]")
@click.option("--allow-host-code", is_flag=True, help="Run the native code in a version-compatible engine.")
@click.option("--base", help="Folder or Hub name of a LoRA adapter's base. [default: the one that the adapter names]")
@click.option(
    "--allow-pickle",
    is_flag=True,
    help="Open the classifier of a SetFit model: a pickle, which can run code. Only for files that you trust.",
)
@click.option("--longest", type=click.IntRange(min=1), default=512, help="Longest length of the grid, in tokens.")
@_thorough
@common_options
def parity(
    bundle: str,
    reference: str,
    data: str | None,
    encoding: str | None,
    columns: tuple[str, ...],
    text_field: str | None,
    label_field: str | None,
    limit: int | None,
    engine: str,
    precision: str | None,
    allow_host_code: bool,
    base: str | None,
    allow_pickle: bool,
    longest: int,
    thorough: bool,
    as_json: bool,
    quiet: bool,
    threads: int | None,
) -> int:
    """Check that BUNDLE answers what transformers answers with the checkpoint it came from.

    The verdict is written into the bundle's manifest, unless the checkpoint is another one (its files' digests are in
    the manifest). Exit code 1 if it fails.
    """
    from nopad.export.bundle import gate_bundle
    from nopad.export.labelled import read_labelled
    from nopad.export.provenance import is_source
    from nopad.model.hub import resolve_checkpoint
    from nopad.model.source import open_source
    from nopad.runtime.bundle import open_bundle, record_parity

    set_threads(threads)
    console = messages(quiet)
    opened = open_bundle(bundle)
    folder = resolve_checkpoint(reference)
    source = open_source(folder, base)
    same = is_source(opened, source)
    if not same:
        console.print(
            f"warning: {folder} is not the checkpoint that {bundle} was exported from (its files differ); they are "
            "compared, and the verdict in the manifest stays as it is",
            style="yellow",
        )
    rows = None
    if data is not None:
        own = DataSource(path=data, encoding=encoding, columns=columns)
        rows = read_labelled(own, opened.manifest, text_field=text_field, label_field=label_field, limit=limit)
    window = int(opened.manifest.architecture.get("local_attention", 128))
    with status(console) as progress:
        report = gate_bundle(
            opened,
            folder,
            half_window=window // 2,
            base=base,
            allow_pickle=allow_pickle,
            progress=progress,
            engine=engine,
            precision=precision,
            threads=threads,
            allow_host_code=allow_host_code,
            data=rows,
            longest=longest,
            thorough=thorough,
        )
    if same:
        record_parity(opened, report["file"], report["engine"], report, report["evaluation"])
    if as_json:
        emit({"bundle": bundle, **report})
    else:
        print_report(report, None, all_lengths=True)
    return 0 if report["passed"] else 1


def set_threads(threads: int | None) -> None:
    """Threads of torch in this process; ONNX Runtime's are set when a model is loaded."""
    if threads is not None:
        import torch

        torch.set_num_threads(threads)


def print_report(report: dict[str, Any], seconds: float | None, *, all_lengths: bool = False) -> None:
    """The gate's figures as a table on stdout."""
    console = Console(highlight=False, markup=False, emoji=False)  # texts and tokens may hold brackets: [/E1]
    rows = report["rows"]
    table = Table(box=None, pad_edge=False)
    for name in ("check", "cases", "worst", "bound", ""):
        table.add_column(name, justify="right" if name in ("cases", "worst", "bound") else "left")
    for check in dict.fromkeys(row["check"] for row in rows):
        group = [row for row in rows if row["check"] == check]
        shares = check in ("labels", "label names", "calibration")
        worst = (min if shares else max)(group, key=_share_of_bound)
        ok = all(row["passed"] for row in group)
        table.add_row(check, str(len(group)), figure(worst["value"]), figure(worst["bound"]), "ok" if ok else "FAILED")
    console.print(table)
    if all_lengths:
        by_length = [row for row in rows if row["check"] == "logits" and "tokens, " in row["case"]]
        console.print("\nlargest logit difference by length")
        lengths = Table(box=None, pad_edge=False)
        for name in ("tokens", "alone", "in a mixed batch"):
            lengths.add_column(name, justify="right")
        for alone, mixed in zip(by_length[::2], by_length[1::2], strict=True):
            lengths.add_row(alone["case"].split()[0], figure(alone["value"], ".1e"), figure(mixed["value"], ".1e"))
        console.print(lengths)
    for row in [row for row in rows if not row["passed"]][:10]:
        console.print(
            f"FAILED {row['check']}, {row['case']}: {figure(row['value'])}, bound {figure(row['bound'])} {row['note']}",
            soft_wrap=True,
        )
    for row in rows:
        if row["passed"] and row["note"]:
            console.print(f"{row['check']}, {row['case']}: {row['note']}")
    if report["evaluation"]:
        console.print(json.dumps({k: v for k, v in report["evaluation"].items() if v is not None}, indent=2))
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    took = f" in {seconds:.1f} s" if seconds is not None else ""
    console.print(f"parity {'passed' if report['passed'] else 'FAILED'}{took} against {versions}")


def _share_of_bound(row: dict[str, Any]) -> float:
    return math.inf if row["value"] is None else float(row["value"]) / (row["bound"] or 1.0)
