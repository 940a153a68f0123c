"""`nopad calibrate`: a temperature and thresholds from labelled texts, into the manifest."""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.table import Table

from nopad.runtime.commands.options import asked_engine_option, asked_precision_option
from nopad.runtime.console import (
    FILES,
    common_options,
    emit,
    labelled_options,
    messages,
    reading_options,
    status,
    threads_option,
)
from nopad.runtime.data.table import DataSource
from nopad.runtime.errors import InputFileError, OutputError, UsageError

if TYPE_CHECKING:
    import numpy as np

    from nopad.model.reliability import Bin
    from nopad.runtime.bundle import Bundle
    from nopad.runtime.calibration import Calibrated
    from nopad.runtime.manifest import Calibration
    from nopad.runtime.predictor import Model
    from nopad.runtime.types import Text

_NAMES = {
    "nll": "negative log-likelihood",
    "ece": "expected calibration error",
    "brier": "Brier score",
    "accuracy": "accuracy",
    "f1": "F1, mean of the labels",
    "abstained": "abstained",
    "answered_accuracy": "accuracy of the others",
}


@click.command()
@click.argument("bundle", required=False)
@click.option("--data", "-d", metavar="FILE", help=f"Labelled texts that the model was not trained on: {FILES}.")
@reading_options
@labelled_options
@click.option(
    "--thresholds",
    type=click.Choice(["f1", "none"]),
    help="f1: for each label the threshold with the best F1, where a text may have several labels; none: 0.5. "
    "[default: f1 where it may, else none]",
)
@click.option(
    "--abstain-below",
    metavar="P",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    help="Mark answers whose calibrated score is below P as abstained, where a text has exactly one label.",
)
@asked_engine_option
@asked_precision_option
@click.option(
    "--output", "-o", type=click.Path(path_type=Path), help="Write the reliability diagram here, before and after: SVG."
)
@click.option("--dry-run", is_flag=True, help="Write nothing into the bundle.")
@click.option("--reset", is_flag=True, help="Remove the bundle's calibration.")
@common_options
@threads_option
def calibrate(
    bundle: str | None,
    data: str | None,
    encoding: str | None,
    columns: tuple[str, ...],
    text_field: str | None,
    second_field: str | None,
    label_field: str | None,
    limit: int | None,
    thresholds: str | None,
    abstain_below: float | None,
    output: Path | None,
    dry_run: bool,
    reset: bool,
    as_json: bool,
    quiet: bool,
    **opening: Any,  # of `load`, by name
) -> None:
    """Make BUNDLE's scores true probabilities: of the answers with a score of 0.8, about 80 % will be right.

    \b
    nopad calibrate bundle/ --data held_out.jsonl
    nopad calibrate bundle/ --data held_out.jsonl --output reliability.svg --dry-run
    nopad calibrate bundle/ --reset

    One number is learned, the temperature that all logits are divided by; where texts have one label, no label
    changes. Half of the texts are held out to report what it does, then it is learned from all, and written into the
    manifest, which load, predict and every server follow.
    """
    from nopad.runtime.bundle import open_bundle

    if (data is None) != reset:
        raise UsageError("give --data FILE with labelled texts" if data is None else "--reset takes no --data")
    opened = open_bundle(bundle, verify=False)
    _check_writable(opened, dry_run=dry_run)
    _check_plot(output)
    console = messages(quiet)
    if data is None:
        _reset(opened, console, dry_run=dry_run, as_json=as_json)
        return
    source = DataSource(path=data, encoding=encoding, columns=columns)
    names = {"text_field": text_field, "second_field": second_field, "label_field": label_field}
    fields = {**names, "limit": limit}
    result, answered, baseline = _fit(opened, source, fields, thresholds, abstain_below, opening, console)
    found = {**_origin(source), **_report(result), **answered, **_today()}
    head = result.head
    if output is not None:
        _write_plot(output, result)
    if not dry_run:
        from nopad.runtime.manifest import Calibration

        _record(
            opened,
            Calibration(
                temperature=head.temperature,
                thresholds=head.thresholds,
                abstain_below=head.abstain_below,
                found=found,
                baseline=baseline,
            ),
        )
    if as_json:
        named = dict(zip(head.labels, head.thresholds, strict=True)) if head.thresholds else None
        chosen = {"temperature": head.temperature, "thresholds": named, "abstain_below": head.abstain_below}
        bins = {"before": result.before_bins, "after": result.after_bins}
        emit(
            {
                "bundle": str(opened.path),
                "written": not dry_run,
                **chosen,
                **found,
                "bins": {name: [dataclasses.asdict(one) for one in each] for name, each in bins.items()},
                "output": str(output) if output else None,
            }
        )
    else:
        _print(result)
    _say_if_worse(result, console)
    what = "nothing was written (--dry-run)" if dry_run else "load and predict answer with this calibration from now on"
    console.print(f"{opened.path}: {what}")


def _say_if_worse(result: Calibrated, console: Console) -> None:
    """One temperature cannot mend every model; the held-out rows tell."""
    before, after = dataclasses.asdict(result.before), dataclasses.asdict(result.after)
    rose = [name for name in ("nll", "ece", "brier") if after[name] > before[name]]
    fell = [name for name in ("f1",) if before[name] is not None and after[name] < before[name]]
    if rose or fell:
        worse = ", ".join(f"{_NAMES[name]} {before[name]:.4f}, then {after[name]:.4f}" for name in (*rose, *fell))
        console.print(
            f"not all is better on the held-out rows ({worse}): give more rows, or leave this model as it is (--reset)",
            style="yellow",
        )


def _check_writable(bundle: Bundle, *, dry_run: bool) -> None:
    from nopad.runtime.bundle import DEFAULT_BUNDLE

    if not dry_run and bundle.path.resolve() == DEFAULT_BUNDLE.resolve():
        raise UsageError(
            f"the embedded model is part of the installed package, which is never written to: copy {bundle.path} and "
            "calibrate the copy, or give --dry-run to see the figures"
        )


def _check_plot(output: Path | None) -> None:
    """Refuse early what cannot be written, or is no SVG file by its name."""
    if output is None:
        return
    if output.suffix.lower() != ".svg":
        raise UsageError(f"--output {output}: the diagram is an SVG file; name it .svg")
    if not output.parent.is_dir():
        raise OutputError(f"cannot write {output}: the folder {output.parent} does not exist")


def _reset(bundle: Bundle, console: Console, *, dry_run: bool, as_json: bool) -> None:
    had = bundle.manifest.calibration
    if had is not None and not dry_run:
        _record(bundle, None)
    if as_json:
        removed = None if had is None else had.temperature
        emit({"bundle": str(bundle.path), "written": had is not None and not dry_run, "removed_temperature": removed})
    if had is None:
        console.print(f"{bundle.path} has no calibration")
    elif dry_run:
        console.print(f"{bundle.path}: nothing was written (--dry-run)")
    else:
        console.print(f"{bundle.path}: its calibration is removed (temperature {had.temperature:.4g})")


def _fit(
    bundle: Bundle,
    source: DataSource,
    fields: Mapping[str, Any],
    thresholds: str | None,
    abstain_below: float | None,
    opening: Mapping[str, Any],
    console: Console,
) -> tuple[Calibrated, dict[str, Any], dict[str, list[int]]]:
    """The calibration, who answered, and how the calibrated bundle answers these texts (for the server's drift)."""
    from nopad.runtime.calibration import calibrate as fit
    from nopad.runtime.calibration import check_head
    from nopad.runtime.data.labelled import read_labelled
    from nopad.runtime.drift import baseline
    from nopad.runtime.predictor import load
    from nopad.runtime.types import in_one

    head = bundle.manifest.head
    with_thresholds = thresholds == "f1" or (thresholds is None and head.multi_label)
    check_head(head, thresholds=with_thresholds, abstain_below=abstain_below)
    rows = read_labelled(source, bundle.manifest, **fields)
    if rows.targets is None:
        raise InputFileError(f"{source.path} has no labels: name their column with --label-field")
    with load(bundle.path, **opening) as model:
        logits = _logits(model, rows.inputs, console)
        lengths = _lengths(model, rows.inputs)
        answered = {
            "engine": model.status().engine,
            "precision": model.artifact.precision,
            "file": model.artifact.file,
        }
    whole = [in_one(text) for text in rows.inputs]
    result = fit(logits, rows.targets, whole, head, thresholds=with_thresholds, abstain_below=abstain_below)
    return result, answered, baseline(logits, lengths, result.head).to_json()


def _logits(model: Model, texts: Sequence[Text], console: Console) -> np.ndarray[Any, np.dtype[np.float32]]:
    import numpy as np

    answers = []
    with status(console) as show:
        for done, logits in enumerate(model.iter_logits(texts)):
            answers.append(logits)
            show("answering the texts", done, len(texts))
    return np.stack(answers)


def _lengths(model: Model, texts: Sequence[Text]) -> list[int]:
    """Tokens of each whole text, all of which have been answered."""
    from nopad.runtime.batching import windows
    from nopad.runtime.tokenizer import Tokens

    encoded = (text for window in windows(texts, lambda text: text) for text in model.encode(window))
    return [text.tokens for text in encoded if isinstance(text, Tokens)]


def _origin(source: DataSource) -> dict[str, Any]:
    from nopad.runtime.data.records import digest_of

    return {"data": Path(source.path).name, "data_sha256": digest_of(source)}


def _report(result: Calibrated) -> dict[str, Any]:
    return {
        "rows": result.fitted_rows + result.held_out_rows,
        "held_out_rows": result.held_out_rows,
        "held_out_temperature": result.held_out_temperature,
        "before": dataclasses.asdict(result.before),
        "after": dataclasses.asdict(result.after),
    }


def _today() -> dict[str, str]:
    from nopad.model.packages import version_of

    return {"date": datetime.datetime.now(datetime.UTC).date().isoformat(), "nopad": str(version_of("nopad"))}


def _record(bundle: Bundle, calibration: Calibration | None) -> None:
    """Write the manifest; what `nopad tune` measured of the bundle holds for it as before."""
    from nopad.runtime.atomic import sha256_of
    from nopad.runtime.bundle import MANIFEST, record_calibration
    from nopad.runtime.tune_file import read_entries, write_entry

    before = sha256_of(bundle.path / MANIFEST)
    record_calibration(bundle, calibration)
    after = sha256_of(bundle.path / MANIFEST)
    for entry in read_entries(bundle):
        if entry.manifest == before:
            write_entry(bundle, dataclasses.replace(entry, manifest=after))


def _print(result: Calibrated) -> None:
    console = Console(highlight=False, markup=False, emoji=False)
    head, fitted, held_out = result.head, result.fitted_rows, result.held_out_rows
    console.print(f"learned from {fitted:,} rows, judged on the other {held_out:,}; no text is on both sides:")
    table = Table(box=None, pad_edge=False)
    for name in ("", "before", "after"):
        table.add_column(name, justify="right" if name else "left", no_wrap=True)
    table.add_row("temperature", "1", f"{result.held_out_temperature:.4f}")
    before, after = dataclasses.asdict(result.before), dataclasses.asdict(result.after)
    for key, name in _NAMES.items():
        cells = ["-" if value is None else f"{value:.4f}" for value in (before[key], after[key])]
        if cells != ["-", "-"]:
            table.add_row(name, *cells)
    console.print(table)
    console.print("\nof the answers with a score in a bin, the share that is right:")
    console.print(_reliability(result.before_bins, result.after_bins))
    console.print(f"\nlearned from all {fitted + held_out:,} rows: temperature {head.temperature:.4f}")
    for label, threshold in zip(head.labels, head.thresholds or (), strict=False):
        console.print(f"  {label}: threshold {threshold:.4f}")


def _reliability(before: Sequence[Bin], after: Sequence[Bin]) -> Table:
    table = Table(box=None, pad_edge=False)
    for name in ("score", "before: rows", "mean score", "right", "after: rows", "mean score", "right"):
        table.add_column(name, justify="right", no_wrap=True)
    for number, pair in enumerate(zip(before, after, strict=True)):
        if any(one.count for one in pair):
            ends = f"{number / len(before):.2f} to {(number + 1) / len(before):.2f}"
            table.add_row(ends, *(cell for one in pair for cell in _cells(one)))
    return table


def _cells(one: Bin) -> tuple[str, str, str]:
    return (f"{one.count:,}", f"{one.probability:.3f}", f"{one.right:.3f}") if one.count else ("0", "-", "-")


def _write_plot(output: Path, result: Calibrated) -> None:
    from nopad.runtime.atomic import write_file

    write_file(output, _plot(result).encode("utf-8"))


def _plot(result: Calibrated) -> str:
    """The reliability diagram over the counts of its bins, on held-out rows."""
    from nopad.charts.standalone import standalone
    from nopad.runtime.reliability_plots import reliability_panels

    return standalone(
        reliability_panels(
            [("before", 1, result.before_bins), ("after", 0, result.after_bins)],
            label="before and after calibration",
            errors=f"expected calibration error {result.before.ece:.4f}, then {result.after.ece:.4f}",
            rows=f"on {result.held_out_rows:,} held-out rows",
        ),
        width=480.0,
    )
