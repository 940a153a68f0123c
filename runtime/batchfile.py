"""Files of texts -> files of answers, line by line in bounded memory. A bad line fails alone."""

from __future__ import annotations

import csv
import errno
import io
import json
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from nopad.runtime.errors import EnvironmentProblem, NopadError, UsageError
from nopad.runtime.predictor import WINDOW, Model
from nopad.runtime.types import Embedding, Failure, MaskFill, Prediction, Result, Tagging, Text


@dataclass(frozen=True, kw_only=True)
class Row:
    """One text of a file, or why the line has none."""

    line: int  # 1 is the first line of the file
    text: Text = ""
    error: str | None = None


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a file went."""

    lines: int
    failed: int
    truncated: int


class InputFileError(NopadError):
    """An input file that cannot be read at all."""


def read_records(source: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Records of a file with their line numbers; the first bad one raises `InputFileError`."""
    for number, record in _records(source):
        if isinstance(record, str):
            raise InputFileError(f"{source}, line {number}: {record}")
        yield number, record


def read_rows(source: str, fields: Sequence[str]) -> Iterator[Row]:
    """Rows of a JSONL, CSV, TSV or plain text file, `-` for stdin (JSONL if its first line is an object).

    Undecodable bytes and missing fields make that row an error. Raises `InputFileError` if the file cannot be opened
    or, for CSV, has no such column.
    """
    for number, record in _records(source, fields):
        if isinstance(record, str):
            yield Row(line=number, error=record)
        else:
            yield _pick(number, record, (LINE,) if LINE in record else fields)


# The one field of a record that was a line of plain text.
LINE = "\0line"


def _records(source: str, columns: Sequence[str] = ()) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """Line number and record, or why that line has none."""
    path = Path(source)
    with ExitStack() as stack:
        try:
            # surrogateescape: a line of invalid UTF-8 is seen as such below, without ending the file.
            opened = open(sys.stdin.fileno() if source == "-" else path, "rb", closefd=source != "-")  # noqa: SIM115
            stream: IO[str] = io.TextIOWrapper(stack.enter_context(opened), "utf-8-sig", errors="surrogateescape")
        except OSError as error:
            raise InputFileError(f"cannot read {source}: {error.strerror}") from None
        kind = path.suffix.lower() if source != "-" else ""
        if kind in (".csv", ".tsv"):
            yield from _table(stream, source, "," if kind == ".csv" else "\t", columns)
            return
        json_lines = kind in (".jsonl", ".json", ".ndjson")
        for number, raw in enumerate(stream, 1):
            line = raw.rstrip("\n")
            if number == 1 and not kind:
                json_lines = line.lstrip().startswith("{")
            if _undecodable(line):
                yield number, _NOT_UTF8
            elif not json_lines:
                yield number, {LINE: line}
            elif line.strip():
                yield number, _parse(line)


_NOT_UTF8 = "the line is not valid UTF-8; save the file as UTF-8"


def _undecodable(text: str) -> bool:
    return any("\udc80" <= character <= "\udcff" for character in text)


def _parse(line: str) -> dict[str, Any] | str:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:  # also a number too long, lists too deep
        return f"the line is not valid JSON: {error}"
    return value if isinstance(value, dict) else f"the line is a JSON {type(value).__name__}, expected an object"


def _table(
    stream: IO[str], source: str, delimiter: str, columns: Sequence[str]
) -> Iterator[tuple[int, dict[str, Any] | str]]:
    csv.field_size_limit(1 << 30)
    reader = csv.reader(stream, delimiter=delimiter)
    header = next(reader, [])
    missing = [column for column in columns if column not in header]
    if missing:
        have = ", ".join(header) or "no header"
        raise InputFileError(f"{source} has no column {missing[0]!r} (it has: {have}); name one with --field")
    before = reader.line_num
    for cells in reader:
        if any(map(_undecodable, cells)):
            yield before + 1, _NOT_UTF8
        elif any(cells[len(header) :]):
            yield before + 1, f"the row has {len(cells)} cells, the header {len(header)}; quote what holds a delimiter"
        elif cells:
            yield before + 1, dict(zip(header, cells, strict=False))
        before = reader.line_num


def _pick(number: int, record: dict[str, Any], fields: Sequence[str]) -> Row:
    texts = []
    for field in fields:
        text = record.get(field)
        if not isinstance(text, str):
            found = ", ".join(sorted(map(str, record)))
            state = "is not a text" if field in record else f"is missing (found: {found})"
            return Row(line=number, error=f"field {field!r} {state}; name the right one with --field")
        texts.append(text)
    return Row(line=number, text=(texts[0], texts[1]) if len(texts) == 2 else texts[0])


def answers(model: Model, rows: Iterator[Row], top_k: int | None) -> Iterator[tuple[Row, Result | str]]:
    """Each row with its answer, or with the reason why it has none; in order, lazily."""
    pending: deque[Row] = deque()

    def texts() -> Iterator[Text]:
        for row in rows:
            pending.append(row)
            if row.error is None:
                yield row.text

    def bad() -> Iterator[tuple[Row, Result | str]]:
        while pending and pending[0].error is not None:
            row = pending.popleft()
            yield row, row.error or ""

    for answer in model.results(texts(), top_k=top_k):
        yield from bad()
        yield pending.popleft(), str(answer.error) if isinstance(answer, Failure) else answer
    yield from bad()


def answer_file(
    model: Model,
    source: str,
    output: Path | None,
    *,
    fields: Sequence[str],
    top_k: int | None,
    resume: bool,
    console: Console,
    emit: Callable[[Any], None],
) -> Outcome:
    """Answer every row of `source` as one JSON object per line, to `output` or through `emit`.

    `output` grows as `OUTPUT.partial` and is renamed at the end; after an interruption it stays, and `resume` goes on
    behind the last texts that were answered together, so that the file becomes what it would have been.
    """
    rows = read_rows(source, fields)
    lines = failed = truncated = 0
    hint = ": go on with --resume" if source != "-" else ""
    partial = output.with_name(output.name + ".partial") if output else None
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with ExitStack() as stack:
        file: IO[str] | None = None
        if output is not None and partial is not None:
            if output.exists() and not output.is_file():
                kind = "folder" if output.is_dir() else "device or pipe"
                raise UsageError(f"--output {output} is a {kind}; name a file")
            if resume:
                kept = _cut(partial, read_rows(source, fields))
                lines, failed, truncated = kept.lines, kept.failed, kept.truncated
                console.print(f"resuming behind line {lines} of {partial}")
                next(islice(rows, lines, lines), None)
            stack.enter_context(_full_disk(f"{partial} holds the answers so far{hint}"))
            mode = "a" if resume else "w"  # a lone surrogate in a message is written as JSON escapes it
            file = stack.enter_context(partial.open(mode, encoding="utf-8", errors="backslashreplace"))
        show = console.is_terminal and output is not None and not console.quiet
        progress = stack.enter_context(Progress(*columns, console=console, disable=not show, transient=True))
        bar = progress.add_task("texts", total=None)
        try:
            for row, answer in answers(model, rows, top_k):
                lines += 1
                if isinstance(answer, str):
                    failed += 1
                    value: dict[str, Any] = {"line": row.line, "error": answer}
                else:
                    truncated += answer.truncated
                    value = {"line": row.line, **as_object(answer)}
                if file is None:
                    emit(value)
                else:
                    file.write(json.dumps(value, ensure_ascii=False) + "\n")
                progress.update(bar, advance=1)
        except KeyboardInterrupt:
            if partial is not None:
                console.print(f"interrupted after {lines} lines; they are in {partial}{hint}")
            raise
    if output is not None and partial is not None:
        partial.replace(output)
    return Outcome(lines=lines, failed=failed, truncated=truncated)


def _cut(partial: Path, rows: Iterator[Row]) -> Outcome:
    """Cut a partial output behind the model's last whole window of texts, and count what is left.

    The texts after it then share their batches with the same ones as without an interruption.
    """
    kept = Outcome(lines=0, failed=0, truncated=0)
    if not partial.is_file():
        return kept
    with partial.open("rb+") as file:
        lines = failed = truncated = texts = size = end = 0
        for line, row in zip(file, rows, strict=False):
            try:
                value = json.loads(line) if line.endswith(b"\n") else None
            except ValueError:
                value = None
            if not isinstance(value, dict):  # torn
                break
            lines, size = lines + 1, size + len(line)
            failed += "error" in value
            truncated += value.get("tokens_used", 0) < value.get("tokens", 0)
            texts += row.error is None
            if texts % WINDOW == 0:
                kept, end = Outcome(lines=lines, failed=failed, truncated=truncated), size
        file.truncate(end)
    return kept


@contextmanager
def _full_disk(hint: str) -> Iterator[None]:
    """Say what to do when the disk is full, also when that is noticed as a file closes."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise EnvironmentProblem(f"the disk is full; free some space, or name another --output; {hint}") from None


def as_object(answer: Result) -> dict[str, Any]:
    """An answer as a JSON object."""
    usage = {"tokens": answer.tokens, "tokens_used": answer.tokens_used, "engine": answer.engine}
    if isinstance(answer, Prediction):
        value: dict[str, Any] = {"label": answer.label, "score": answer.score, "scores": dict(answer.scores)}
        if len(answer.labels) != 1:
            value["labels"] = list(answer.labels)
        return value | usage
    if isinstance(answer, Tagging):
        entities = [
            {"label": e.label, "score": e.score, "start": e.start, "end": e.end, "text": e.text}
            for e in answer.entities
        ]
        return {"entities": entities, "labels": list(answer.labels)} | usage
    if isinstance(answer, MaskFill):
        return {"masks": [[{"token": t, "score": s} for t, s in mask] for mask in answer.masks]} | usage
    assert isinstance(answer, Embedding)
    return {"vector": [float(x) for x in answer.vector]} | usage
