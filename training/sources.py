"""Where rows come from: whatever `nopad.runtime.data` reads, or the Hub. Errors name the place at fault."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets

from nopad.runtime.data.fields import MISSING, TEXT_COLUMNS, as_cell, find_column, name_list, value_at
from nopad.runtime.data.folders import SUFFIXES, Part, find_parts, split_of
from nopad.runtime.data.opening import suffix_of
from nopad.runtime.data.records import open_part
from nopad.runtime.data.table import DataSource, source_of
from nopad.runtime.errors import InputFileError
from nopad.training.errors import DataError


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


def find_splits(source: DataSource | str) -> dict[str, Any]:
    """What `source` holds under `train`, `validation`, `test` (or other names on the Hub), for `read_rows`.

    Raises `DataError`.
    """
    source = source_of(source)
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


def read_rows(part: Any, *, wanted: Sequence[str] = TEXT_COLUMNS) -> Rows:
    """Read one value of `find_splits`: a split on disk, or a dataset of the Hub. Raises `DataError`.

    `wanted` are the names that the text may have (`nopad.runtime.data.records.open_table`).
    """
    if not isinstance(part, _Split):
        return _from_dataset(part)
    records: list[dict[str, Any]] = []
    places: list[str] = []
    try:
        with open_part(part.part, part.source, wanted=wanted) as table:
            for number, record in table.items:
                if isinstance(record, str):
                    raise DataError(f"{table.place(number)}: {record}; mend or remove it")
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
