"""Files of texts -> files of answers, a window at a time in bounded memory. A bad line does not affect the others."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import IO, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from nopad.runtime.batching import windows
from nopad.runtime.data.fields import TEXT_COLUMNS
from nopad.runtime.data.records import Row, read_rows, source_columns, source_files
from nopad.runtime.data.table import DataSource
from nopad.runtime.errors import UsageError
from nopad.runtime.explain.page import explained
from nopad.runtime.manifest import Manifest
from nopad.runtime.offline.answer_table import AnswerTable, kept_columns, kept_name, table_kind, table_of
from nopad.runtime.offline.resumable import output_file, partial_file, resumable_file
from nopad.runtime.predictor import Model
from nopad.runtime.types import Embedding, Explanation, Failure, MaskFill, Prediction, Result, Tagging, TokenEmbeddings


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Line counts of a file of answers."""

    lines: int = 0
    failed: int = 0
    truncated: int = 0

    def plus(self, answer: Mapping[str, Any]) -> Outcome:
        """The counts after one more line, with this answer."""
        return Outcome(
            lines=self.lines + 1,
            failed=self.failed + ("error" in answer),
            truncated=self.truncated + (answer.get("tokens_used", 0) < answer.get("tokens", 0)),
        )


@dataclass(frozen=True, kw_only=True)
class Reading:
    """The rows of a source that are answered: where the text is, and what is kept of the other columns."""

    source: DataSource
    field: str | None = None  # None: the first of `TEXT_COLUMNS` that there is
    second_field: str | None = None
    keep: tuple[str, ...] = ()

    def rows(self, remark: Callable[[str], object] = lambda text: None) -> Iterator[Row]:
        """As `read_rows`."""
        return read_rows(self.source, self.field, self.second_field, keep=self.keep, remark=remark)


# Rows, and how many came before them -> their answers, one for each and in order, or the error of the whole job.
Scoring = Callable[[Iterator[Row], int], Iterator[Mapping[str, Any]]]


def answers(model: Model, rows: Iterable[Row], wanted: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Each row's answer, or the reason why it has none, as JSON objects; lazily and in order.

    `wanted`: options of `Model.results`.
    """
    for window in windows(rows, _text):
        good = (row.text for row in window if row.error is None)
        results = iter(list(model.results(good, **wanted)))
        for row in window:
            answer = next(results) if row.error is None else None
            kept = {kept_name(name): plain(value) for name, value in row.kept.items()}
            if answer is None or isinstance(answer, Failure):
                yield {"line": row.line, **kept, "error": str(answer.error) if answer else row.error}
            else:
                yield {"line": row.line, **kept, **as_object(answer)}


def _text(row: Row) -> Any:
    return row.text


def plain(value: Any) -> Any:
    """A column's value as JSON can hold it: dates as ISO 8601, bytes and the like as text, NaN as null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | int):
        return value
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value.isoformat() if hasattr(value, "isoformat") else str(value)


def answer_file(
    manifest: Manifest,
    score: Scoring,
    reading: Reading,
    output: Path | None,
    *,
    scores: bool = False,
    wanted: Mapping[str, Any],
    options: Mapping[str, Any],
    resume: bool,
    console: Console,
    emit: Callable[[Any], None],
) -> Outcome:
    """Answer every row of a source as one JSON object per line, to `output` or through `emit`.

    `score` gives the answers of the bundle with that `manifest`. An `output` that ends in .csv, .tsv or .parquet
    becomes a table; `scores` gives it a column for each label. Answers go to `OUTPUT.partial` as JSON lines, which
    become `output` at the end. After an interruption the partial file stays, and `resume` continues after its last
    whole window of texts, so that the result is the same as without the interruption. `wanted` are options of
    `Model.results`, `options` the other settings that answers depend on: a job with different ones is not resumed.
    Raises `InputFileError`, `UsageError`, `OutputError`, `EnvironmentProblem`.
    """
    if scores and output is None:
        raise UsageError("--scores makes columns of a CSV or Parquet --output; lines of JSON have `scores` already")
    table, path = None, reading.source.path
    if output is not None:
        kind = table_kind(output, task=manifest.task, scores=scores)
        output = output_file(output, [0] if path == "-" else source_files(reading.source))
        windows_too = options.get("truncation") == "window"
        table = _table(manifest, kind, reading, scores, windows_too) if kind else None
    rows = reading.rows(remark=console.print)
    rows = chain(list(islice(rows, 1)), rows)  # raises for an unreadable file before anything is written
    hint = ": go on with --resume" if path != "-" else ""
    with ExitStack() as stack:
        write, outcome = emit, Outcome()
        if output is not None:
            fields = [name for name in (reading.field, reading.second_field) if name]
            job = {"fields": fields, "keep": list(reading.keep), **wanted, **options}
            job |= _inputs(manifest, reading.source)
            convert = table.write if table else None
            file = stack.enter_context(resumable_file(output, job=job, resume=resume, hint=hint, convert=convert))
            if resume:
                outcome = _cut(file, reading.rows())
                console.print(f"resuming after line {outcome.lines} of {partial_file(output)}")
                next(islice(rows, outcome.lines, outcome.lines), None)
            write = functools.partial(_write, file)
        advance = stack.enter_context(_progress(console, shown=output is not None or not sys.stdout.isatty()))
        try:
            for answer in score(rows, outcome.lines):
                write(answer)
                outcome = outcome.plus(answer)
                advance()
        except KeyboardInterrupt:
            if output is not None and outcome.lines:
                console.print(f"interrupted after {outcome.lines} lines; they are in {partial_file(output)}{hint}")
            raise
    return outcome


def _table(manifest: Manifest, kind: str, reading: Reading, scores: bool, windows_too: bool) -> AnswerTable:
    columns = None
    if "*" in reading.keep and reading.source.path != "-":
        columns = source_columns(reading.source, [reading.field] if reading.field else TEXT_COLUMNS)
    kept = kept_columns(reading.keep, columns)
    return table_of(manifest, kind=kind, scores=scores, windows=windows_too, kept=kept)


def _write(file: IO[bytes], value: Any) -> None:
    # Lone surrogates in a message become JSON escapes.
    file.write((json.dumps(value, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace"))


@contextmanager
def _progress(console: Console, shown: bool) -> Iterator[Callable[[], None]]:
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    disable = console.quiet or not (console.is_terminal and shown)
    with Progress(*columns, console=console, disable=disable, transient=True) as progress:
        bar = progress.add_task("texts", total=None)
        yield lambda: progress.update(bar, advance=1)


def _inputs(manifest: Manifest, source: DataSource) -> dict[str, Any]:
    """What identifies a job: the bundle's files, and the input in its present state."""
    files = [(str(file), os.stat(file)) for file in source_files(source)] or [("-", os.stat(0))]
    bundle: dict[str, Any] = {name: record.sha256 for name, record in manifest.files.items()}
    if manifest.calibration is not None:  # it changes answers, and no file
        bundle["calibration"] = dataclasses.asdict(manifest.calibration)
    return {
        "bundle": bundle,
        "input": [[os.path.realpath(name), state.st_size, state.st_mtime_ns] for name, state in files],
        "reading": [source.location()[1], source.encoding, list(source.columns)],
    }


def _cut(file: IO[bytes], rows: Iterator[Row]) -> Outcome:
    """Cut a partial output after its last whole window of texts, and count the lines that stay.

    The texts that follow are then batched exactly as without an interruption.
    """
    kept, end = Outcome(), 0
    file.seek(0)
    for window in windows(rows, _text):
        lines = list(islice(file, len(window)))
        written = [_answer(line) for line in lines]
        if [answer.get("line") for answer in written] != [
            row.line for row in window
        ]:  # a torn line, or an incomplete window
            break
        for answer in written:
            kept = kept.plus(answer)
        end += sum(map(len, lines))
    file.truncate(end)
    return kept


def _answer(line: bytes) -> dict[str, Any]:
    try:
        value = json.loads(line) if line.endswith(b"\n") else None
    except ValueError:
        value = None
    return value if isinstance(value, dict) else {}


def as_object(answer: Result | Explanation) -> dict[str, Any]:
    """An answer as a JSON object."""
    usage: dict[str, Any] = {"tokens": answer.tokens, "tokens_used": answer.tokens_used, "engine": answer.engine}
    if answer.windows != 1:
        usage["windows"] = answer.windows
    if isinstance(answer, Prediction):
        value: dict[str, Any] = {"label": answer.label, "score": answer.score, "scores": dict(answer.scores)}
        if len(answer.labels) != 1:
            value["labels"] = list(answer.labels)
        if answer.abstained:
            value["abstained"] = True
        return value | usage
    if isinstance(answer, Explanation):
        return explained(answer) | usage
    if isinstance(answer, Tagging):
        entities = [
            {"label": e.label, "score": e.score, "start": e.start, "end": e.end, "text": e.text}
            for e in answer.entities
        ]
        return {"entities": entities, "labels": list(answer.labels)} | usage
    if isinstance(answer, MaskFill):
        return {"masks": [[{"token": t, "score": s} for t, s in mask] for mask in answer.masks]} | usage
    if isinstance(answer, TokenEmbeddings):
        return {"tokens_text": list(answer.tokens_text), "vectors": answer.vectors.tolist()} | usage
    assert isinstance(answer, Embedding)
    return {"vector": [float(x) for x in answer.vector]} | usage
