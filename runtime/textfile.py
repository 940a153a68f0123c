"""Files of texts -> rows, one at a time: JSONL, CSV, TSV or plain text. A bad line is a row with an error."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import IO, Any

from nopad.runtime.errors import InputFileError
from nopad.runtime.types import Text


@dataclass(frozen=True, kw_only=True)
class Row:
    """One text of a file, or why the line has none."""

    line: int  # 1 is the first line of the file
    text: Text = ""
    error: str | None = None


def read_records(source: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Records of a file with their line numbers (of a JSON array: their places); a bad one raises `InputFileError`."""
    for number, record in _records(source):
        if isinstance(record, str):
            raise InputFileError(f"{source}, line {number}: {record}")
        yield number, record


def read_rows(source: str, fields: Sequence[str]) -> Iterator[Row]:
    """Rows of a JSONL, JSON, CSV, TSV or plain text file, `-` for stdin (JSONL if its first text is an object).

    CSV may quote a cell; TSV has no quotes, a line is a row. Undecodable bytes, missing fields and unclosed quotes
    make that row an error. Raises `InputFileError` if the file cannot be opened or is of another kind or, for CSV and
    TSV, has no such column.
    """
    for number, record in _records(source, fields):
        if isinstance(record, str):
            yield Row(line=number, error=record)
        else:
            yield _pick(number, record, (LINE,) if LINE in record else fields)


# Characters of one CSV cell: a quote that is never closed would take the rest of the file into it.
_LONGEST_CELL = 1 << 24
# The one field of a record that was a line of plain text.
LINE = "\0line"


# How files begin that are not text, and what they are.
_MAGIC = {
    b"PAR1": "a Parquet file",
    b"\x1f\x8b": "compressed (gzip)",
    b"PK\x03\x04": "a ZIP archive or a spreadsheet",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
}


def _records(source: str, columns: Sequence[str] = ()) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """Line number and record, or why that line has none."""
    path = Path(source)
    with ExitStack() as stack:
        try:
            if source == "-" and sys.stdin is None:
                raise InputFileError("cannot read stdin: it is closed; name a file")
            opened = open(sys.stdin.fileno() if source == "-" else path, "rb", closefd=source != "-")  # noqa: SIM115
            beginning = stack.enter_context(opened).peek(4)
        except OSError as error:
            raise InputFileError(f"cannot read {source}: {error.strerror}") from None
        for magic, what in _MAGIC.items():
            if beginning.startswith(magic):
                raise InputFileError(f"{source} is {what}; save it as JSONL, CSV, TSV or plain text in UTF-8")
        # surrogateescape: a line of invalid UTF-8 is seen as such below, without ending the file.
        stream = io.TextIOWrapper(opened, "utf-8-sig", errors="surrogateescape")
        kind = path.suffix.lower() if source != "-" else ""
        if kind in (".csv", ".tsv"):
            yield from _table(stream, source, kind == ".tsv", columns)
            return
        if kind == ".json" and (array := _array(stream, source)) is not None:
            yield from enumerate(array, 1)
            return
        lines: Iterator[str] = stream
        json_lines = kind in (".jsonl", ".json", ".ndjson")
        if not kind:  # the first line that is not blank decides
            head = list(_until_text(stream))
            lines = chain(head, stream)
            json_lines = bool(head) and head[-1].lstrip().startswith("{")
        for number, raw in enumerate(lines, 1):
            line = raw.rstrip("\n")
            if _undecodable(line):
                yield number, _NOT_UTF8
            elif not json_lines:
                yield number, {LINE: line}
            elif line.strip():
                yield number, _parse(line)


def _array(stream: IO[str], source: str) -> list[dict[str, Any] | str] | None:
    """The objects of a file that is one JSON array; None if it is none (then each line is an object)."""
    if not stream.seekable():
        return None
    beginning = "".join(_until_text(stream)).lstrip()
    stream.seek(0)
    if not beginning.startswith("["):
        return None
    try:
        values = json.load(stream)
    except (ValueError, RecursionError) as error:
        raise InputFileError(f"{source} is not valid JSON: {error}") from None
    return [_object(value, "the item") for value in values]


def _until_text(stream: Iterator[str]) -> Iterator[str]:
    for line in stream:
        yield line
        if line.strip():
            return


_NOT_UTF8 = "the line is not valid UTF-8; save the file as UTF-8"


def _undecodable(text: str) -> bool:
    return any("\udc80" <= character <= "\udcff" for character in text)


def _parse(line: str) -> dict[str, Any] | str:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:  # also a number too long, lists too deep
        return f"the line is not valid JSON: {error}"
    return _object(value, "the line")


def _object(value: Any, what: str) -> dict[str, Any] | str:
    return value if isinstance(value, dict) else f"{what} is a JSON {type(value).__name__}, expected an object"


def _table(
    stream: IO[str], source: str, tabs: bool, columns: Sequence[str]
) -> Iterator[tuple[int, dict[str, Any] | str]]:
    csv.field_size_limit(_LONGEST_CELL)
    reader = csv.reader(stream, delimiter="\t", quoting=csv.QUOTE_NONE) if tabs else csv.reader(stream, strict=True)
    header: list[str] | None = None
    while True:
        before = reader.line_num
        try:
            cells = next(reader, None)
        except csv.Error as error:
            if header is None:
                raise InputFileError(f"{source}, line {before + 1}: the header is not valid CSV: {error}") from None
            yield before + 1, f"the row is not valid CSV: {error}; close its quotes, and double those inside a text"
            continue
        if header is None:
            header = cells or []
            missing = [column for column in columns if column not in header]
            if missing:
                have = ", ".join(header) or "no header"
                raise InputFileError(f"{source} has no column {missing[0]!r} (it has: {have}); name one with --field")
        elif cells is None:
            return
        elif any(map(_undecodable, cells)):
            yield before + 1, _NOT_UTF8
        elif any(cells[len(header) :]):
            yield before + 1, f"the row has {len(cells)} cells, the header {len(header)}; quote what holds a delimiter"
        elif cells:
            yield before + 1, dict(zip(header, cells, strict=False))


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
