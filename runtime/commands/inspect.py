"""`nopad inspect`: what a bundle holds."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from nopad.runtime.atomic import sha256_of
from nopad.runtime.bundle import MANIFEST, Bundle, open_bundle
from nopad.runtime.console import common_options, emit, figure
from nopad.runtime.manifest import Artifact, Calibration, to_json
from nopad.runtime.tune_file import Tuned, read_entries


@click.command()
@click.argument("bundle", required=False)
@click.option("--no-verify", is_flag=True, help="Do not check the files' SHA-256.")
@common_options
def inspect(bundle: str | None, no_verify: bool, as_json: bool, quiet: bool) -> None:
    """Show what BUNDLE holds and how it was verified (without one: the embedded default)."""
    opened = open_bundle(bundle, verify=not no_verify)
    if as_json:
        tuning = [dataclasses.asdict(entry) for entry in read_entries(opened)]
        emit({"path": str(opened.path), **json.loads(to_json(opened.manifest)), "tuning": tuning})
        return
    console = Console(highlight=False, markup=False, emoji=False)
    console.print(_overview(opened, checked=not no_verify))
    for artifact in opened.manifest.artifacts:
        console.print(_artifact(artifact, opened.manifest.files[artifact.file].bytes))


def _table() -> Table:
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    return table


def _overview(bundle: Bundle, checked: bool) -> Table:
    manifest = bundle.manifest
    total = sum(record.bytes for record in manifest.files.values())
    table = _table()
    table.add_row("bundle", str(bundle.path))
    table.add_row("verdict", manifest.verdict)
    table.add_row("task", f"{manifest.task}" + (f" ({manifest.problem_type})" if manifest.problem_type else ""))
    if manifest.labels:
        table.add_row("labels", ", ".join(manifest.labels))
    table.add_row("max length", f"{manifest.max_length} tokens")
    if manifest.pooling:
        cut = f", cut to {manifest.truncate_dim}" if manifest.truncate_dim else ""
        table.add_row("pooling", manifest.pooling + cut + (", normalised" if manifest.normalize else ""))
    if manifest.activation:
        table.add_row("scores", manifest.activation)
    if any(manifest.prompts.values()):
        named = (f"{name} {text!r}" for name, text in manifest.prompts.items() if text)
        default = f" (default: {manifest.default_prompt_name})" if manifest.default_prompt_name else ""
        table.add_row("prompts", ", ".join(named) + default)
    table.add_row("architecture", ", ".join(f"{key} {value}" for key, value in manifest.architecture.items()))
    table.add_row("source", str(manifest.source.get("name", "unknown")))
    table.add_row("made by", ", ".join(f"{key} {value}" for key, value in manifest.created.items()))
    table.add_row(
        "files", f"{len(manifest.files)}, {total / 1e6:.1f} MB, {'SHA-256 checked' if checked else 'not checked'}"
    )
    if manifest.evaluation:
        table.add_row("evaluation", _figures(manifest.evaluation))
    if manifest.calibration is not None:
        table.add_row("calibrated", _calibration(manifest.calibration, manifest.labels))
        table.add_row("  found", _figures(manifest.calibration.found))
    table.add_row("probes", f"{len(manifest.probes)} texts" if manifest.probes else "none: run nopad parity")
    for entry in read_entries(bundle):
        table.add_row("tuned", _tuned(entry, bundle))
    return table


def _tuned(entry: Tuned, bundle: Bundle) -> str:
    cores = f"{entry.cores} core{'s' if entry.cores > 1 else ''}"
    threads = f", {entry.threads} thread{'s' if entry.threads > 1 else ''}" if entry.threads else ""
    stale = "" if entry.manifest == sha256_of(bundle.path / MANIFEST) else "; the bundle has changed since"
    return (
        f"{entry.cpu}, {cores}: {entry.engine} {entry.precision} ({entry.file}), micro-batches of "
        f"{entry.token_budget} tokens{threads}: {entry.tokens_per_second:,.0f} tokens/s, {entry.date}{stale}"
    )


def _calibration(found: Calibration, labels: Sequence[str]) -> str:
    thresholds = dict(zip(labels, found.thresholds or (), strict=False))
    return _figures(
        {"temperature": found.temperature, "abstains below": found.abstain_below}
        | ({"thresholds": thresholds} if thresholds else {})
    )


def _figures(values: Mapping[str, Any]) -> str:
    """Names and values on one line; values of None were not measured and are left out."""
    shown = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            shown.append(f"{name} ({_figures(value)})")
        elif value is not None:
            shown.append(f"{name} {value:.4f}" if isinstance(value, float) else f"{name} {value}")
    return ", ".join(shown)


def _signature(values: Mapping[str, list[str]]) -> str:
    return ", ".join(f"{name}[{', '.join(shape)}]" for name, shape in values.items())


def _artifact(artifact: Artifact, size: int) -> Table:
    table = _table()
    shown = f"{artifact.target} {artifact.precision}, {artifact.layout}, {size / 1e6:.1f} MB"
    table.add_row(artifact.file, shown + (f", {artifact.sm}" if artifact.sm else ""))
    table.add_row("  inputs", _signature(artifact.inputs))
    table.add_row("  outputs", _signature(artifact.outputs))
    facts = {
        "opset": artifact.opset,
        "exporter": artifact.exporter,
        "token multiple": artifact.token_multiple,
        "built with": artifact.built_with,
        "for": artifact.platform,
    }
    table.add_row("  graph", ", ".join(f"{key} {value}" for key, value in facts.items() if value is not None))
    for profile in artifact.profiles:
        ranges = dataclasses.asdict(profile)
        table.add_row("  profile", ", ".join(f"{name} {a} to {c} (best {b})" for name, (a, b, c) in ranges.items()))
    if artifact.quantized:
        table.add_row("  quantized", _figures(_summary(artifact.quantized)))
    for engine, report in artifact.parity.items():
        _parity(table, engine, report)
    if not artifact.parity:
        table.add_row("  parity", "never checked: run nopad parity")
    return table


def _summary(quantized: Mapping[str, Any]) -> dict[str, Any]:
    """The record with long lists of layers as counts, and without sensitivities."""
    values = {name: value for name, value in quantized.items() if name not in ("file", "sensitivity") and value != []}
    return {
        name: (", ".join(value) if len(value) < 4 else len(value)) if isinstance(value, list) else value
        for name, value in values.items()
    }


def _parity(table: Table, engine: str, report: Mapping[str, Any]) -> None:
    rows = report.get("rows", [])
    failed = [row for row in rows if not row["passed"]]
    logits = [row["value"] for row in rows if row["check"] == "logits" and row["value"] is not None]
    versions = ", ".join(f"{key} {value}" for key, value in report.get("versions", {}).items())
    worst = f", worst logit difference {max(logits):.1e}" if logits else ""
    verdict = "verified" if report.get("passed") is True else "unverified"
    table.add_row(
        "  parity", f"{verdict} on {engine}: {len(rows) - len(failed)} of {len(rows)} checks, {versions}{worst}"
    )
    for row in failed[:5]:
        table.add_row(
            "  failed",
            f"{row['check']}, {row['case']}: {figure(row['value'])} (bound {figure(row['bound'])}) {row['note']}",
        )
