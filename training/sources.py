"""Where rows come from: CSV, TSV, JSONL and Parquet files, a folder of them, or the Hub. Errors name file and line."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
from pyarrow import parquet  # type: ignore[import-untyped]

from nopad.runtime.errors import InputFileError
from nopad.runtime.textfile import read_records
from nopad.training.errors import DataError

SUFFIXES = (".csv", ".tsv", ".jsonl", ".json", ".parquet")
_SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev", "eval", "evaluation"), "validation"),
    "test": "test",
}


@dataclass(frozen=True, kw_only=True)
class Rows:
    """The rows of one split, as they were read."""

    records: list[dict[str, Any]]
    places: list[str]  # of each record, for messages
    class_names: dict[str, tuple[str, ...]]  # column -> names that the data set itself brings for its numbers
    untyped: bool  # CSV and TSV: every value is a text, None where it is blank

    @property
    def columns(self) -> list[str]:
        """All names that occur, in order."""
        return list(dict.fromkeys(name for record in self.records for name in record))


def find_splits(source: str) -> dict[str, Any]:
    """What `source` holds under `train`, `validation`, `test` (or other names of the Hub's), for `read_rows`.

    Raises `DataError`.
    """
    path = Path(source)
    if path.is_file():
        if path.suffix.lower() not in SUFFIXES:
            raise DataError(f"{path}: expected one kind of {', '.join(SUFFIXES)}")
        return {"train": [path]}
    if path.is_dir():
        return _folder(path)
    if path.suffix.lower() in SUFFIXES or source.startswith((".", "/", "~")):
        raise DataError(f"no file or folder at {source}")
    try:
        parts = datasets.load_dataset(source)
    except Exception as error:  # the library raises many types; all mean that the data cannot be read
        cause = error.__cause__ or error
        reason = str(cause).splitlines()[0] if str(cause) else "no reason given"
        raise DataError(f"cannot read {source}: {type(cause).__name__}: {reason}") from error
    splits: dict[str, Any] = {}
    for name, part in parts.items():
        splits.setdefault(_split_of(name) or name, part)
    return splits


def read_rows(part: Any) -> Rows:
    """Read one value of `find_splits`: a list of files of one kind, or a dataset of the Hub. Raises `DataError`."""
    if not isinstance(part, list):
        return _from_dataset(part, "")
    read = [_read_file(path) for path in part]
    return Rows(
        records=[record for rows in read for record in rows.records],
        places=[place for rows in read for place in rows.places],
        class_names=read[0].class_names,
        untyped=read[0].untyped,
    )


def _split_of(name: str) -> str | None:
    return next((_SPLITS[word] for word in re.findall("[a-z]+", name.lower()) if word in _SPLITS), None)


def _folder(path: Path) -> dict[str, Any]:
    files: list[Path] = []
    for folder in (path, path / "data"):  # data/ is how the Hub lays it out
        if not files and folder.is_dir():
            found = [file for file in folder.iterdir() if not file.name.startswith(".")]
            files = sorted(file for file in found if file.suffix.lower() in SUFFIXES)
    if len({file.suffix.lower() for file in files}) != 1:
        raise DataError(f"{path}: expected one kind of {', '.join(SUFFIXES)}, found {len(files)} file(s) to read")
    splits: dict[str, Any] = {}
    for file in files:
        splits.setdefault(_split_of(file.stem) or "", []).append(file)
    unknown = splits.pop("", [])
    if not splits:
        return {"train": unknown}
    if unknown:
        raise DataError(
            f"{path}: by its name {unknown[0].name} is neither training nor evaluation data ({', '.join(_SPLITS)}); "
            "rename it, or name single files with --train and --eval"
        )
    return splits


def _from_dataset(part: Any, file: str) -> Rows:
    features = {name: getattr(feature, "feature", feature) for name, feature in part.features.items()}  # of lists, too
    names = {name: tuple(feature.names) for name, feature in features.items() if getattr(feature, "names", None)}
    places = [f"{file}row {number}" for number in range(1, len(part) + 1)]
    return Rows(records=part.to_list(), places=places, class_names=names, untyped=False)


def _read_file(path: Path) -> Rows:
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        try:
            part = datasets.Dataset(parquet.ParquetFile(path).read())
        except Exception as error:  # many types here, too
            raise DataError(f"cannot read {path}: {error}; copy or write the file again") from error
        rows = _from_dataset(part, f"{path}, ")
    else:
        untyped = suffix in (".csv", ".tsv")
        placed = list(_text_rows(path, untyped))
        rows = Rows(
            records=[record for _, record in placed],
            places=[place for place, _ in placed],
            class_names={},
            untyped=untyped,
        )
    if not rows.records:
        raise DataError(f"cannot read {path}: it has no rows")
    return rows


def _text_rows(path: Path, untyped: bool) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        for number, record in read_records(str(path)):
            if untyped:
                record = {name: value if value.strip() else None for name, value in record.items() if name}
            yield f"{path}, line {number}", record
    except InputFileError as error:
        raise DataError(f"{error}; mend or remove it") from None
