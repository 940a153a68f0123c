"""Where rows come from: whatever `nopad.runtime.data` reads, or the Hub. Errors name the place at fault."""

from __future__ import annotations

import glob
import os
from array import array
from bisect import bisect_left
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar, cast

import datasets

from nopad.runtime.data.fields import MISSING, as_cell, find_column, name_list, plain_name, value_at
from nopad.runtime.data.folders import SUFFIXES, Part, find_parts, split_of
from nopad.runtime.data.opening import suffix_of
from nopad.runtime.data.records import open_part
from nopad.runtime.data.table import DataSource, source_of
from nopad.runtime.errors import InputFileError
from nopad.training.bad_rows import BadRows
from nopad.training.errors import DataError
from nopad.training.rows_on_disk import Lazily, Records

T = TypeVar("T")
Sources = DataSource | str | Sequence[DataSource | str]  # one, or several that are read one after another


@dataclass(frozen=True, kw_only=True)
class Rows:
    """The rows of one split, as they were read: on disk."""

    records: Records
    names: Collection[str]  # that occur in the records, in order
    class_names: dict[str, tuple[str, ...]]  # column -> names that the data set itself brings for its numbers
    untyped: bool  # CSV and TSV: every value is a text, None where it is blank
    spreadsheet: bool = False  # a text may be stored as a number or a date
    repeated: frozenset[str] = frozenset()  # names that the header repeats
    remarks: tuple[str, ...] = ()  # what was left out, or chosen of several
    files: tuple[tuple[str, frozenset[str]], ...] = ()  # of several: their first places, and their columns
    derived: dict[str, Callable[[dict[str, Any]], Any]] = field(default_factory=dict)  # columns that are made of others

    def __len__(self) -> int:
        """How many there are."""
        return len(self.records)

    def row(self, index: int) -> tuple[dict[str, Any], str]:
        """A record and its place, for messages."""
        record, place = self.records[index]
        for name, value_of in self.derived.items():
            record[name] = value_of(record)
        return record, place

    def usable(
        self, make: Callable[[dict[str, Any], str], T | None], bad: BadRows, see: Callable[[T], object] | None = None
    ) -> Sequence[T]:
        """What `make` makes of each record and its place, anew whenever it is read; `see` is shown each once.

        None is a row without a text; a `ValueError` says why a row is bad. Raises `DataError` where these are refused.
        """
        kept = array("q")
        for index in range(len(self)):
            record, place = self.row(index)
            try:
                made = make(record, place)
            except ValueError as error:
                bad.add(place, str(error))
                continue
            if made is None:
                bad.add_blank()
                continue
            kept.append(index)
            if see is not None:
                see(made)
        return Lazily(lambda index: cast(T, make(*self.row(kept[index]))), len(kept))

    @property
    def columns(self) -> list[str]:
        """All names that occur, in order."""
        return list(dict.fromkeys([*self.names, *self.derived]))

    def column(self, name: str | None, known: Sequence[str], option: str, *, what: str = "training data") -> str:
        """The column called `name` (whatever its case; or at that dotted path), or the first of the `known` names.

        The values at a dotted path are in the records under that path, from then on. Raises `DataError`.
        """
        columns = self.columns
        try:
            for candidate in [name] if name is not None else known:
                column = find_column(columns, candidate)
                if column in self.repeated:
                    raise DataError(f"the {what} has several columns {column!r}; rename all but the right one")
                if column is not None:
                    self._check_files(column, option)
                    self._join_spellings(column)
                    return column
            if name is not None and self._derive(name):
                return name
        except ValueError as error:
            raise DataError(f"the {what} has several such columns: {error}; name one with {option}") from None
        expected = repr(name) if name is not None else " or ".join(known[:4])
        hint = f"name one with {option}" + (", or all with --columns if there is no header line" * self.untyped)
        raise DataError(f"the {what} has no column {expected}; it has {name_list(columns)}: {hint}")

    def provide(self, name: str, option: str) -> None:
        """Make evaluation data have the column `name`, which may differ in case there. Raises `DataError`."""
        column = self.column(name, (), option, what="evaluation data")
        if column != name:
            self.derived[name] = lambda record: record.get(column)

    def _join_spellings(self, column: str) -> None:
        """Where files, or lines of JSON, write the column's name in other capitals, take its value from there."""
        plain = plain_name(column)
        if any(name != column and plain_name(name) == plain for name in self.names):
            self.derived[column] = lambda record: record.get(
                column, next((value for name, value in record.items() if plain_name(name) == plain), None)
            )

    def _check_files(self, column: str, option: str) -> None:
        """Refuse that one of several files lacks the column: none of its rows would count. Raises `DataError`."""
        for place, columns in self.files:
            if column not in columns and find_column(columns, column) is None:
                raise DataError(
                    f"{place}: no column {column!r} here, which other files have; this one has "
                    f"{name_list(sorted(columns))}: rename its column, or name one that all have with {option}"
                )

    def _derive(self, path: str) -> bool:
        values = (value_at(self.records[index][0], path) for index in range(len(self)))
        if not sum(value is not MISSING for value in values):  # all of them: a path may be ambiguous in any
            return False
        self.derived[path] = lambda record: None if (value := value_at(record, path)) is MISSING else value
        return True

    def text(self, record: dict[str, Any], column: str) -> Any:
        """A record's text, even if a spreadsheet stores it as a number or a date."""
        value = record.get(column)
        return as_cell(value) if self.spreadsheet and value is not None and not isinstance(value, str) else value


@dataclass(frozen=True, kw_only=True)
class _Split:
    """A split on disk, and how to read it."""

    part: Part
    source: DataSource


def find_splits(sources: Sources) -> dict[str, list[Any]]:
    """What the sources hold under `train`, `validation`, `test` (or other names on the Hub), for `read_rows`.

    A path that is no file may be a pattern (`part-*.jsonl`). Raises `DataError`.
    """
    splits: dict[str, list[Any]] = {}
    for source in [sources] if isinstance(sources, DataSource | str) else sources:
        for one in _matches(source_of(source)):
            for name, part in _splits_of(one).items():
                splits.setdefault(name, []).append(part)
    return splits


def _matches(source: DataSource) -> list[DataSource]:
    """The source; of a pattern, the files and folders that match, in order."""
    if not glob.has_magic(source.path) or os.path.exists(source.location()[0]):
        return [source]
    found = sorted(glob.glob(source.path, recursive=True))
    if not found:
        raise DataError(f"nothing matches {source.path}")
    return [replace(source, path=path) for path in found]


def _splits_of(source: DataSource) -> dict[str, Any]:
    path, name = source.location()
    if path == "-" or os.path.isfile(path):
        return {"train": _Split(part=Part(files=(Path(source.path),)), source=source)}
    if os.path.isdir(path):
        try:
            parts = find_parts(Path(path))
        except InputFileError as error:
            raise DataError(str(error)) from None
        if name is not None and name not in parts:
            raise DataError(f"{path} has no split {name!r}: there are {', '.join(parts)}")
        parts = {"train": parts[name]} if name is not None else parts
        return {split: _Split(part=part, source=source) for split, part in parts.items()}
    if suffix_of(path.partition("#")[0]) in (*SUFFIXES, ".txt") or path.startswith((".", "/", "~")):
        raise DataError(f"no file or folder at {path}")
    return _hub_splits(path)


def _hub_splits(name: str) -> dict[str, Any]:
    try:
        parts = datasets.load_dataset(name)
    except Exception as error:  # the library raises many types; all mean that the data cannot be read
        cause = error.__cause__ or error
        reason = str(cause).splitlines()[0] if str(cause) else "no reason given"
        raise DataError(f"cannot read {name}: {type(cause).__name__}: {reason}") from error
    splits: dict[str, Any] = {}
    for split, part in parts.items():
        splits.setdefault(split_of(split) or split, part)
    return splits


def read_rows(parts: Sequence[Any], *, wanted: Sequence[str], bad_rows: BadRows) -> Rows:
    """Read a value of `find_splits`: splits on disk and datasets of the Hub, one after another. Raises `DataError`.

    `wanted` are the names that the text may have (`nopad.runtime.data.records.open_table`). Rows that cannot be read
    go to `bad_rows`.
    """
    records = Records()
    each = [
        _from_disk(part, wanted, bad_rows, records) if isinstance(part, _Split) else _from_dataset(part, records)
        for part in parts
    ]
    files = [file for rows in each for file in rows.files]
    return Rows(
        records=records,
        names=dict.fromkeys(name for rows in each for name in rows.names),
        class_names=_common_names([rows.class_names for rows in each]),
        untyped=any(rows.untyped for rows in each),
        spreadsheet=any(rows.spreadsheet for rows in each),
        repeated=frozenset().union(*(rows.repeated for rows in each)),
        remarks=tuple(remark for rows in each for remark in rows.remarks),
        files=tuple(files) if len(files) > 1 else (),
    )


def _common_names(each: Sequence[Mapping[str, tuple[str, ...]]]) -> dict[str, tuple[str, ...]]:
    names: dict[str, tuple[str, ...]] = {}
    for own in each:
        for column, classes in own.items():
            if names.setdefault(column, classes) != classes:
                raise DataError(f"the files name the classes of column {column!r} differently; give them one by one")
    return names


def _from_disk(part: _Split, wanted: Sequence[str], bad_rows: BadRows, records: Records) -> Rows:
    """The rows of a split, put behind the `records`."""
    files: dict[int, tuple[str, dict[str, None]]] = {}  # of each its first place and its columns, in their order
    try:
        with open_part(part.part, part.source, wanted=wanted) as table:
            for number, record in table.items:
                if isinstance(record, str):
                    bad_rows.add(table.place(number), record)
                    continue
                if table.untyped:
                    record = {name: value if value.strip() else None for name, value in record.items()}
                place = table.place(number)
                files.setdefault(bisect_left(table.ends, number), (place, {}))[1].update(dict.fromkeys(record))
                records.add(record, place)
            return Rows(
                records=records,
                names=dict.fromkeys(name for _, columns in files.values() for name in columns),
                class_names=dict(table.class_names),
                untyped=table.untyped,
                spreadsheet=table.spreadsheet,
                repeated=table.repeated,
                remarks=table.remarks,
                files=tuple((place, frozenset(columns)) for place, columns in files.values()),
            )
    except InputFileError as error:
        raise DataError(str(error)) from None


def _from_dataset(part: Any, records: Records) -> Rows:
    features = {name: getattr(feature, "feature", feature) for name, feature in part.features.items()}  # of lists, too
    names = {name: tuple(feature.names) for name, feature in features.items() if getattr(feature, "names", None)}
    tables = part.with_format("arrow").iter(batch_size=100)
    for number, record in enumerate((record for table in tables for record in table.to_pylist()), start=1):
        records.add(record, f"row {number}")
    columns = part.column_names
    files = (("row 1", frozenset(columns)),) if len(part) else ()
    return Rows(records=records, names=columns, class_names=names, untyped=False, files=files)
