"""The user's files -> a table of records, or rows of texts: a file of any kind, a folder, or stdin."""

from __future__ import annotations

import hashlib
import os
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

from nopad.runtime.atomic import sha256_of
from nopad.runtime.data import column_lines, delimited, json_texts
from nopad.runtime.data.columnar import open_columnar
from nopad.runtime.data.fields import LABEL_COLUMNS, MISSING, TEXT_COLUMNS, Field, name_list, plain_name
from nopad.runtime.data.folders import Part, class_table, find_parts
from nopad.runtime.data.opening import DAMAGED, Lines, not_decoded, open_bytes, text_lines, undecodable
from nopad.runtime.data.spreadsheet import open_spreadsheet
from nopad.runtime.data.table import DataSource, Item, Table, source_of, unreadable
from nopad.runtime.errors import InputFileError
from nopad.runtime.types import Text

# Records that are read ahead to find the field of the text, if each record has its own keys.
_SAMPLE = 50


@dataclass(frozen=True, kw_only=True)
class Row:
    """One text of a source (or a pair of texts), or the reason why the row has none."""

    line: int  # the row's number: 1 is the first line of a text file, the first row of other kinds
    text: Text = ""
    error: str | None = None
    kept: Mapping[str, Any] = field(default_factory=dict)  # columns to carry through to the answer


@contextmanager
def open_table(source: DataSource | str, *, wanted: Sequence[str] = TEXT_COLUMNS) -> Iterator[Table]:
    """Open a file, a folder or stdin. `wanted`: possible names of the text's column, by which a header is recognised.

    Raises `InputFileError` if it cannot be read, is of an unknown kind, or has no rows, and `EnvironmentProblem` if a
    package is missing. A bad row is an item with the reason.
    """
    source = source_of(source)
    path, part = source.location()
    with ExitStack() as stack:
        if os.path.isdir(path):
            parts = find_parts(Path(path))
            yield _with_sample(_open_part(_choose_part(parts, path, part), source, wanted, stack))
        else:
            yield _with_sample(_open_file(source, wanted, stack))


@contextmanager
def open_part(part: Part, source: DataSource, *, wanted: Sequence[str] = TEXT_COLUMNS) -> Iterator[Table]:
    """Like `open_table`, for a split from `folders.find_parts`."""
    with ExitStack() as stack:
        yield _with_sample(_open_part(part, source, wanted, stack))


def read_rows(
    source: DataSource | str,
    field: str | None = None,
    second_field: str | None = None,
    *,
    keep: Sequence[str] = (),
    option: str = "--field",
    remark: Callable[[str], object] = lambda text: None,
) -> Iterator[Row]:
    """The texts of a source, or its pairs of texts, lazily. `keep` names columns to carry along, `*` all of them.

    `option` is the command's name for `field`, `remark` is called with remarks: what was left out, or chosen among
    several.

    Undecodable bytes, missing fields and unclosed quotes make a row an error. Without `field`, the text is in the first
    of `TEXT_COLUMNS` that the source has. Raises as `open_table`, and `InputFileError` if a table lacks the column.
    """
    names = [name for name in (field, second_field) if name] if field else TEXT_COLUMNS
    with open_table(source, wanted=names) as table:
        for text in table.remarks:
            remark(text)
        options = [(field, option), (second_field, "--second-field")]
        fields = [Field(table, path, TEXT_COLUMNS, name) for path, name in options[: 2 if second_field else 1]]
        kept = [(name, Field(table, name, (), "--keep")) for name in keep if name != "*"]
        for number, record in table.items:
            if isinstance(record, str):
                yield Row(line=number, error=record)
                continue
            columns: dict[str, Any] = dict(record) if "*" in keep else {}
            try:
                columns |= {name: None if (v := column.value(record)) is MISSING else v for name, column in kept}
                texts = [column.text(record) for column in fields]
            except ValueError as error:
                yield Row(line=number, error=str(error), kept=columns)
            else:
                yield Row(line=number, text=(texts[0], texts[1]) if len(texts) == 2 else texts[0], kept=columns)


def source_columns(source: DataSource | str, wanted: Sequence[str] = TEXT_COLUMNS) -> tuple[str, ...] | None:
    """The columns of a table; None if every record has its own keys. Raises as `open_table`."""
    with open_table(source, wanted=wanted) as table:
        return table.columns


def source_files(source: DataSource | str) -> list[Path]:
    """The files of a source; none for stdin. Raises `InputFileError`."""
    path, part = source_of(source).location()
    if path == "-":
        return []
    return list(_choose_part(find_parts(Path(path)), path, part).files) if os.path.isdir(path) else [Path(path)]


def digest_of(source: DataSource | str) -> str | None:
    """A file's SHA-256; of a folder, that of its files' digests; None of stdin. Raises `InputFileError`."""
    digests = [sha256_of(file) for file in source_files(source)]
    if len(digests) == 1:
        return digests[0]
    return hashlib.sha256("\n".join(digests).encode()).hexdigest() if digests else None


def _choose_part(parts: Mapping[str, Part], path: str, name: str | None) -> Part:
    if name is None and len(parts) == 1:
        return next(iter(parts.values()))
    if name is None or name not in parts:
        wrong = f"has no split {name!r}" if name is not None else "has several splits"
        raise InputFileError(f"{path} {wrong}: there {'is' if len(parts) == 1 else 'are'} {', '.join(parts)}; name "
                             f"one, as {path}#{next(iter(parts))}")  # fmt: skip
    return parts[name]


def _open_part(part: Part, source: DataSource, wanted: Sequence[str], stack: ExitStack) -> Table:
    if part.classes:
        return class_table(part, source)
    first = _open_file(replace(source, path=str(part.files[0])), wanted, stack)
    names = part.class_names or first.class_names
    if len(part.files) == 1:
        return replace(first, class_names=names)
    ends: list[int] = []  # number of the last row of each file, counted over all files

    def items() -> Iterator[Item]:
        number = offset = 0
        for file in part.files:
            with ExitStack() as own:
                table = first
                if file != part.files[0]:
                    table = _open_file(replace(source, path=str(file)), wanted, own)
                    if not part.class_names and table.class_names != names:
                        raise InputFileError(f"{file} names the classes of a column otherwise than {part.files[0]}")
                for number, record in table.items:
                    yield offset + number, f"{table.place(number)}: {record}" if isinstance(record, str) else record
            offset += number
            ends.append(offset)

    def where(number: int) -> str:
        at = bisect_left(ends, number)
        own = number - (ends[at - 1] if at else 0)
        return f"{part.files[at]}, {first.unit} {own}"

    return replace(first, name=source.path, items=items(), class_names=names, where=where, ends=ends)


def _open_file(source: DataSource, wanted: Sequence[str], stack: ExitStack) -> Table:
    path, part = source.location()
    opened = open_bytes(path, stack)
    if opened.kind == "zip":
        return _with_damage_reported(open_spreadsheet(opened, source, part, stack))
    if part is not None:
        raise InputFileError(f"{path} has no part {part!r}: only spreadsheets (sheets) and folders (splits) have")
    if opened.kind != "text":
        return _with_damage_reported(open_columnar(opened, source, stack))
    try:
        lines = text_lines(opened, path, source.encoding, stack)
        return _with_damage_reported(_open_text(lines, source, opened.suffix, wanted))
    except DAMAGED as error:
        raise unreadable(path, error) from None


def _open_text(lines: Lines, source: DataSource, suffix: str, wanted: Sequence[str]) -> Table:
    texts = {plain_name(name) for name in wanted}
    known = texts | set(LABEL_COLUMNS)
    if suffix in json_texts.SUFFIXES:
        return json_texts.open_json(lines, source, suffix, texts)
    if suffix in column_lines.SUFFIXES or (suffix != ".csv" and column_lines.is_column_lines(lines)):
        return column_lines.open_column_lines(lines, source, suffix)
    if suffix in (".csv", ".tsv", ".tab") or source.columns:
        return delimited.open_delimited(lines, source, suffix, known)
    if suffix in (".parquet", ".arrow", ".feather", ".xlsx"):
        raise InputFileError(f"cannot read {source.path}: it is not what its name says; copy or write the file again")
    first = lines.first_text()
    if json_texts.is_json(first, suffix):
        return json_texts.open_json(lines, source, suffix, texts)
    if delimited.is_table(first, texts):
        return delimited.open_delimited(lines, source, suffix, known)
    return Table(name=source.path, kind="plain text", items=_plain(lines, source.encoding), columns=("text",))


def _plain(lines: Lines, encoding: str | None) -> Iterator[Item]:
    for line in lines:
        text = line.rstrip("\n").rstrip("\r")
        yield lines.number, not_decoded(encoding) if undecodable(text) else {"text": text}


def _with_damage_reported(table: Table) -> Table:
    """The table, with an `InputFileError` where its items meet a damaged file."""

    def items() -> Iterator[Item]:
        try:
            yield from table.items
        except DAMAGED as error:
            raise unreadable(table.name, error) from None

    return replace(table, items=items())


def _with_sample(table: Table) -> Table:
    """The table with its first records as `sample`. Raises `InputFileError` if it has no rows."""
    first = list(islice(table.items, _SAMPLE))
    if not first:
        header = f" but its header ({name_list(table.columns)})" if table.columns and table.untyped else ""
        raise InputFileError(f"cannot read {table.name}: it has no rows{header}")
    sample = tuple(record for _, record in first if not isinstance(record, str))
    return replace(table, items=chain(first, table.items), sample=sample)
