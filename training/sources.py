"""Where rows come from: whatever `nopad.runtime.data` reads, or the Hub. Errors name the place at fault."""

from __future__ import annotations

import glob
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import datasets

from nopad.runtime.data.fields import MISSING, as_cell, find_column, name_list, value_at
from nopad.runtime.data.folders import SUFFIXES, Part, find_parts, split_of
from nopad.runtime.data.opening import suffix_of
from nopad.runtime.data.records import open_part
from nopad.runtime.data.table import DataSource, source_of
from nopad.runtime.errors import InputFileError
from nopad.training.bad_rows import BadRows
from nopad.training.errors import DataError

Sources = DataSource | str | Sequence[DataSource | str]  # one, or several that are read one after another


@dataclass(frozen=True, kw_only=True)
class Rows:
    """The rows of one split, as they were read."""

    records: list[dict[str, Any]]
    places: list[str]  # of each record, for messages
    class_names: dict[str, tuple[str, ...]]  # column -> names that the data set itself brings for its numbers
    untyped: bool  # CSV and TSV: every value is a text, None where it is blank
    spreadsheet: bool = False  # a text may be stored as a number or a date
    repeated: frozenset[str] = frozenset()  # names that the header repeats
    remarks: tuple[str, ...] = ()  # what was left out, or chosen of several
    files: tuple[tuple[str, frozenset[str]], ...] = ()  # of several sources: their first places, and their columns

    @property
    def columns(self) -> list[str]:
        """All names that occur, in order."""
        return list(dict.fromkeys(name for record in self.records for name in record))

    def column(self, name: str | None, known: Sequence[str], option: str, *, what: str = "training data") -> str:
        """The column called `name` (whatever its case; or at that dotted path), or the first of the `known` names.

        The values at a dotted path are put into the records under that path. Raises `DataError`.
        """
        columns = self.columns
        try:
            for candidate in [name] if name is not None else known:
                column = find_column(columns, candidate)
                if column in self.repeated:
                    raise DataError(f"the {what} has several columns {column!r}; rename all but the right one")
                if column is not None:
                    self._check_files(column, option)
                    return column
        except ValueError as error:
            raise DataError(f"the {what} has several such columns: {error}; name one with {option}") from None
        if name is not None and self._copy_values(name):
            return name
        expected = repr(name) if name is not None else " or ".join(known[:4])
        hint = f"name one with {option}" + (", or all with --columns if there is no header line" * self.untyped)
        raise DataError(f"the {what} has no column {expected}; it has {name_list(columns)}: {hint}")

    def provide(self, name: str, option: str) -> None:
        """Make evaluation data have the column `name`, which may differ in case there. Raises `DataError`."""
        column = self.column(name, (), option, what="evaluation data")
        if column != name:
            for record in self.records:
                record[name] = record.get(column)

    def _check_files(self, column: str, option: str) -> None:
        """Refuse that one of several sources lacks the column: none of its rows would count. Raises `DataError`."""
        for place, columns in self.files:
            if column not in columns and find_column(columns, column) is None:
                raise DataError(
                    f"{place}: no column {column!r} here, which other files have; this one has "
                    f"{name_list(sorted(columns))}: rename its column, or name one that all have with {option}"
                )

    def _copy_values(self, path: str) -> bool:
        values = [value_at(record, path) for record in self.records]
        if all(value is MISSING for value in values):
            return False
        for record, value in zip(self.records, values, strict=True):
            record[path] = None if value is MISSING else value
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
    each = [_from_disk(part, wanted, bad_rows) if isinstance(part, _Split) else _from_dataset(part) for part in parts]
    if len(each) == 1:
        return each[0]
    return Rows(
        records=[record for rows in each for record in rows.records],
        places=[place for rows in each for place in rows.places],
        class_names=_common_names([rows.class_names for rows in each]),
        untyped=any(rows.untyped for rows in each),
        spreadsheet=any(rows.spreadsheet for rows in each),
        repeated=frozenset().union(*(rows.repeated for rows in each)),
        remarks=tuple(remark for rows in each for remark in rows.remarks),
        files=tuple((rows.places[0], frozenset(rows.columns)) for rows in each if rows.records),
    )


def _common_names(each: Sequence[Mapping[str, tuple[str, ...]]]) -> dict[str, tuple[str, ...]]:
    names: dict[str, tuple[str, ...]] = {}
    for own in each:
        for column, classes in own.items():
            if names.setdefault(column, classes) != classes:
                raise DataError(f"the files name the classes of column {column!r} differently; give them one by one")
    return names


def _from_disk(part: _Split, wanted: Sequence[str], bad_rows: BadRows) -> Rows:
    records: list[dict[str, Any]] = []
    places: list[str] = []
    try:
        with open_part(part.part, part.source, wanted=wanted) as table:
            for number, record in table.items:
                if isinstance(record, str):
                    bad_rows.add(table.place(number), record)
                    continue
                if table.untyped:
                    record = {name: value if value.strip() else None for name, value in record.items()}
                records.append(record)
                places.append(table.place(number))
            return Rows(
                records=records,
                places=places,
                class_names=dict(table.class_names),
                untyped=table.untyped,
                spreadsheet=table.spreadsheet,
                repeated=table.repeated,
                remarks=table.remarks,
            )
    except InputFileError as error:
        raise DataError(str(error)) from None


def _from_dataset(part: Any) -> Rows:
    features = {name: getattr(feature, "feature", feature) for name, feature in part.features.items()}  # of lists, too
    names = {name: tuple(feature.names) for name, feature in features.items() if getattr(feature, "names", None)}
    places = [f"row {number}" for number in range(1, len(part) + 1)]
    return Rows(records=part.to_list(), places=places, class_names=names, untyped=False)
