"""`nopad analyze`: where a bundle errs on labelled texts, as a page; and what changed from one bundle to another."""

from __future__ import annotations

import datetime
import json
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console

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
from nopad.runtime.engines.base import named_engines
from nopad.runtime.errors import OutputError, UsageError

if TYPE_CHECKING:
    from nopad.analysis.analysis import Analysis, Wanted
    from nopad.analysis.tagged_rows import TaggedRows
    from nopad.runtime.data.labelled import LabelledTexts
    from nopad.runtime.data.table import DataSource
    from nopad.runtime.model import Model

_SHOWN = 3


@click.command()
@click.argument("bundle", required=False)
@click.argument("other", required=False)
@click.option("--data", "-d", metavar="FILE", required=True, help=f"Labelled texts: {FILES}.")
@reading_options
@labelled_options
@click.option(
    "--train", metavar="FILE", help="The texts that the model was trained on: which of --data are among them."
)
@click.option(
    "--slice-field",
    "slices",
    metavar="NAME",
    multiple=True,
    help="A column whose values are compared: accuracy for each. May be given several times.",
)
@click.option("--rows", type=click.IntRange(min=1), default=20, help="The most rows in each table of texts.")
@click.option(
    "--explain", "explained", type=click.IntRange(min=0), default=5, help="Mistakes whose words are marked; 0: none."
)
@click.option(
    "--budget",
    type=click.IntRange(min=3),
    default=128,
    help="The most runs to mark one: its words, or its sentences where it has too many words.",
)
@click.option(
    "--output",
    "-o",
    type=click.Path(path_type=Path, dir_okay=False),
    default=Path("analysis.html"),
    help="The page; the same figures are written beside it as .json.",
)
@asked_engine_option
@asked_precision_option
@click.option(
    "--other-precision", help="Of the second bundle; without OTHER, compare with this precision of the same bundle."
)
@click.option(
    "--truncation",
    type=click.Choice(["truncate", "error", "window"]),
    default="truncate",
    help="A text over the model's max length: cut it, leave its row out, or read it in windows.",
)
@click.option("--allow-unverified", is_flag=True, help="Open a bundle that has not passed the parity gate.")
@common_options
@threads_option
def analyze(
    bundle: str | None,
    other: str | None,
    data: str,
    encoding: str | None,
    columns: tuple[str, ...],
    text_field: str | None,
    second_field: str | None,
    label_field: str | None,
    limit: int | None,
    train: str | None,
    slices: tuple[str, ...],
    rows: int,
    explained: int,
    budget: int,
    output: Path,
    engine: str,
    precision: str | None,
    other_precision: str | None,
    as_json: bool,
    quiet: bool,
    **opening: Any,  # of `load`, by name
) -> int:
    """Show where BUNDLE errs on labelled texts, and what OTHER does differently: one HTML page, and a JSON file.

    \b
    nopad analyze bundle/ --data test.jsonl --train train.jsonl --output errors.html
    nopad analyze bundle/ --data test.csv --slice-field source --slice-field year
    nopad analyze old/ new/ --data test.jsonl --output what-changed.html
    nopad analyze bundle/ --precision fp32 --other-precision int8 --data test.jsonl

    For text-classification (one label, several, or numbers) and token-classification. A row that cannot be used fails
    alone: it is counted and shown, and the exit code is 3 at the end.
    """
    from nopad.analysis.analysis import Wanted
    from nopad.runtime.data.table import DataSource

    _check_output(output)
    console = messages(quiet)
    source = DataSource(path=data, encoding=encoding, columns=columns)
    fields = {"text_field": text_field, "second_field": second_field, "label_field": label_field}
    opening |= {"engine": named_engines(engine)}
    chosen = [(bundle, precision)]
    if other is not None or other_precision is not None:
        chosen.append((other or bundle, other_precision))
    wanted = Wanted(slices=slices, rows=rows, explain=explained, budget=budget)
    found = _analyze(chosen, source, train, fields, limit, wanted, opening, console)
    origin = _origin(source, train)
    _write(output, found, origin)
    if as_json:
        emit({"output": str(output), **origin, **_object(found)})
    else:
        _print(found)
    _remark(found, output, console)
    return 3 if found.bad else 0


def _analyze(
    chosen: list[tuple[str | None, str | None]],
    source: DataSource,
    train: str | None,
    fields: dict[str, Any],
    limit: int | None,
    wanted: Wanted,
    opening: dict[str, Any],
    console: Console,
) -> Analysis:
    from nopad.analysis.analysis import analyze as analyzed
    from nopad.analysis.analysis import check_task
    from nopad.analysis.answers import check_alike
    from nopad.analysis.tag_analysis import analyze_tags
    from nopad.analysis.tagged_rows import read_tagged_rows
    from nopad.runtime.bundle import open_bundle
    from nopad.runtime.data.labelled import read_labelled
    from nopad.runtime.predictor import load

    manifests = [open_bundle(bundle, verify=False).manifest for bundle, _ in chosen]
    for manifest in manifests:
        check_task(manifest.head)
    check_alike(manifests[0].head, manifests[-1].head)
    other = None if train is None else replace(source, path=train)
    with status(console) as show, ExitStack() as stack:
        show("reading the rows")

        def opened() -> list[Model]:
            return [stack.enter_context(load(bundle, precision=precision, **opening)) for bundle, precision in chosen]

        def read(path: DataSource, **more: Any) -> LabelledTexts:
            return read_labelled(path, manifests[0], skip_bad=True, **fields, **more)

        def read_tags(path: DataSource, **more: Any) -> TaggedRows:
            return read_tagged_rows(path, manifests[0].labels, **_without_second(fields), **more)

        asked: dict[str, Any] = {"limit": limit, "keep": wanted.slices}  # not of the training rows
        if manifests[0].task == "token-classification":
            tagged = read_tags(source, **asked)
            return analyze_tags(opened(), tagged, None if other is None else read_tags(other), wanted, show)
        data = read(source, **asked)
        return analyzed(opened(), data, None if other is None else read(other), wanted, show)


def _without_second(fields: dict[str, Any]) -> dict[str, Any]:
    if fields["second_field"] is not None:
        raise UsageError("--second-field: a tagger reads no pairs; name the text with --text-field")
    return {name: field for name, field in fields.items() if name != "second_field"}


def _check_output(output: Path) -> None:
    """Refuse early what cannot be written."""
    if output.suffix.lower() not in (".html", ".htm"):
        raise UsageError(f"--output {output}: the page is an HTML file; name it .html")
    if not output.parent.is_dir():
        raise OutputError(f"cannot write {output}: the folder {output.parent} does not exist")


def _origin(source: DataSource, train: str | None) -> dict[str, Any]:
    """What was read, and when and by which nopad."""
    from nopad.model.packages import version_of
    from nopad.runtime.data.records import digest_of

    return {
        "data": Path(source.path).name,
        "data_sha256": digest_of(source),
        "train": None if train is None else Path(train).name,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "nopad": str(version_of("nopad")),
    }


def _object(found: Analysis) -> dict[str, Any]:
    from nopad.analysis.analysis import as_json
    from nopad.analysis.words import summary

    return {"summary": list(summary(found)), **as_json(found)}


def _write(output: Path, found: Analysis, origin: dict[str, Any]) -> None:
    from nopad.analysis.page import page
    from nopad.runtime.atomic import write_file

    text = json.dumps({**origin, **_object(found)}, ensure_ascii=False, indent=1, default=float)
    write_file(output.with_suffix(".json"), text.encode("utf-8", "backslashreplace"))
    write_file(output, page(found, origin).encode("utf-8", "backslashreplace"))


def _print(found: Analysis) -> None:
    from nopad.analysis.words import summary

    console = Console(highlight=False, markup=False, emoji=False, soft_wrap=True)
    for line in summary(found):
        console.print(line)


def _remark(found: Analysis, output: Path, console: Console) -> None:
    from nopad.analysis.words import unknown_labels

    console.print(f"{output} and {output.with_suffix('.json')} are written")
    if found.train_bad:
        console.print(f"{found.train_bad:,} rows of --train could not be used", style="yellow")
    for line in unknown_labels(found):
        console.print(line, style="yellow")
    if found.bad:  # last: it is why the command fails
        shown = "; ".join(f"{row.place}: {row.reason:.200}" for row in found.bad[:_SHOWN])
        more = f"; and {len(found.bad) - _SHOWN:,} more" if len(found.bad) > _SHOWN else ""
        console.print(f"{len(found.bad):,} rows could not be used: {shown}{more}", style="bold")
