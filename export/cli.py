"""`nopad export` and `nopad parity`."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from nopad.model.config import TASKS
from nopad.runtime.commands.console import common_options, emit, figure, messages, status


@click.command()
@click.argument("checkpoint")
@click.option("--target", type=click.Choice(["onnx"]), default="onnx", help="Kind of engine to make.")
@click.option(
    "--precision", type=click.Choice(["fp32", "fp16"]), default="fp32", help="fp16 is for GPUs; slow on CPUs."
)
@click.option(
    "--exporter",
    type=click.Choice(["nopad", "optimum"]),
    default="nopad",
    help="nopad: packed ModernBERT and BERT. optimum: any architecture of optimum-onnx, padded.",
)
@click.option("--output", "-o", required=True, type=click.Path(path_type=Path), help="Bundle folder to write.")
@click.option("--task", type=click.Choice(TASKS), help="If config.json does not tell. [default: from config.json]")
@click.option("--pooling", type=click.Choice(["cls", "mean"]), help="Of embeddings. [default: from the checkpoint]")
@click.option("--normalize/--no-normalize", default=None, help="Unit-length embeddings. [default: from the checkpoint]")
@click.option("--max-length", type=int, help="Tokens a text may have. [default: the tokenizer's limit]")
@click.option("--no-parity", is_flag=True, help="Skip the parity gate; the bundle stays unverified.")
@common_options
def export(
    checkpoint: str,
    target: str,
    precision: Any,
    exporter: Any,
    output: Path,
    task: Any,
    pooling: Any,
    normalize: bool | None,
    max_length: int | None,
    no_parity: bool,
    as_json: bool,
    quiet: bool,
    threads: int | None,
) -> int:
    """Export CHECKPOINT (a folder, or a Hugging Face Hub name) to a bundle, and prove its parity.

    The exit code is 1 if the bundle fails the parity gate; it is then written, but marked unverified.
    """
    from nopad.export.bundle import export_checkpoint

    set_threads(threads)
    console = messages(quiet)
    with status(console) as progress:
        result = export_checkpoint(
            checkpoint,
            output,
            precision=precision,
            exporter=exporter,
            task=task,
            pooling=pooling,
            normalize=normalize,
            max_length=max_length,
            parity=not no_parity,
            threads=threads,
            progress=progress,
        )
    verdict = result.bundle.manifest.verdict
    if as_json:
        emit(
            {
                "bundle": str(output),
                "verdict": verdict,
                "export_seconds": round(result.export_seconds, 2),
                "parity_seconds": round(result.parity_seconds, 2),
                "bytes": result.bytes,
                "parity": result.report,
            }
        )
    else:
        size, seconds = result.bytes / 1e6, result.export_seconds
        click.echo(f"{output}: {target} {precision}, {size:.1f} MB, exported in {seconds:.1f} s, {verdict}")
        if result.report:
            print_report(result.report, result.parity_seconds)
    return 1 if result.report and not result.report["passed"] else 0


@click.command()
@click.argument("bundle")
@click.option("--reference", "-r", required=True, help="The checkpoint the bundle was exported from.")
@click.option(
    "--data", type=click.Path(path_type=Path), help="JSONL or CSV of texts, labelled if it has --label-field."
)
@click.option("--text-field", default="text", help="Field of the text in --data.")
@click.option("--label-field", default="label", help="Field of the label: its name, or its number.")
@click.option("--limit", type=click.IntRange(min=1), help="Only the first N rows of --data.")
@click.option("--engine", default="auto", help="Engine to check: auto or onnx-cpu.")
@click.option("--longest", type=click.IntRange(min=1), default=512, help="Longest length of the grid, in tokens.")
@common_options
def parity(
    bundle: str,
    reference: str,
    data: Path | None,
    text_field: str,
    label_field: str,
    limit: int | None,
    engine: str,
    longest: int,
    as_json: bool,
    quiet: bool,
    threads: int | None,
) -> int:
    """Check that BUNDLE answers what transformers answers with the checkpoint it came from.

    The verdict is written into the bundle's manifest, unless the checkpoint is another one (its files' digests are in
    the manifest). Exit code 1 if it fails.
    """
    from nopad.export.bundle import gate_bundle, is_source
    from nopad.export.labelled import read_labelled
    from nopad.model.checkpoint import read_raw_config, resolve_checkpoint
    from nopad.runtime.bundle import open_bundle, record_parity

    set_threads(threads)
    console = messages(quiet)
    opened = open_bundle(bundle)
    folder = resolve_checkpoint(reference)
    same = is_source(opened, folder)
    if not same:
        console.print(
            f"warning: {folder} is not the checkpoint that {bundle} was exported from (its files differ); they are "
            "compared, and the verdict in the manifest stays as it is",
            style="yellow",
        )
    rows = None
    if data is not None:
        rows = read_labelled(data, opened.manifest, text_field=text_field, label_field=label_field, limit=limit)
    raw = read_raw_config(folder)
    with status(console) as progress:
        report = gate_bundle(
            opened,
            folder,
            half_window=int(raw.get("local_attention") or 128) // 2,
            progress=progress,
            engine=engine,
            threads=threads,
            data=rows,
            longest=longest,
        )
    if same:
        record_parity(opened, {opened.manifest.artifacts[0].file: report}, report["evaluation"])
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
    console = Console(highlight=False)
    rows = report["rows"]
    table = Table(box=None, pad_edge=False)
    for name in ("check", "cases", "worst", "bound", ""):
        table.add_column(name, justify="right" if name in ("cases", "worst", "bound") else "left")
    for check in dict.fromkeys(row["check"] for row in rows):
        group = [row for row in rows if row["check"] == check]
        shares = check in ("labels", "label names")
        worst = (min if shares else max)(group, key=lambda row: math.inf if row["value"] is None else row["value"])
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
            f"FAILED {row['check']}, {row['case']}: {figure(row['value'])}, bound {figure(row['bound'])} {row['note']}"
        )
    if report["evaluation"]:
        console.print(json.dumps({k: v for k, v in report["evaluation"].items() if v is not None}, indent=2))
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    took = f" in {seconds:.1f} s" if seconds is not None else ""
    console.print(f"parity {'passed' if report['passed'] else 'FAILED'}{took} against {versions}")
