"""Parquet, Arrow and the folders of `save_to_disk` -> records, batch by batch, with only pyarrow."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from nopad.runtime.data.opening import Opened, seekable
from nopad.runtime.data.table import DataSource, Item, Table, need, unreadable
from nopad.runtime.errors import InputFileError

# Rows that are converted to Python objects at a time.
_ROWS = 1024
_STATE, _INFO = "state.json", "dataset_info.json"


def open_columnar(opened: Opened, source: DataSource, stack: ExitStack) -> Table:
    """The rows of a Parquet file, or of Arrow's file format (also Feather version 2) or stream format.

    Raises `InputFileError`, `EnvironmentProblem`.
    """
    kind = "Parquet" if opened.kind == "parquet" else "Arrow"
    arrow = need("pyarrow", f"{source.path} (a {kind} file)")
    try:
        if opened.kind == "parquet":
            file = stack.enter_context(need("pyarrow.parquet", source.path).ParquetFile(seekable(opened.file)))
            schema, batches = file.schema_arrow, file.iter_batches(batch_size=_ROWS)
        elif opened.kind == "arrow-file":
            reader = stack.enter_context(need("pyarrow.ipc", source.path).open_file(seekable(opened.file)))
            schema = reader.schema
            batches = (reader.get_batch(index) for index in range(reader.num_record_batches))
        else:
            batches = stack.enter_context(need("pyarrow.ipc", source.path).open_stream(opened.file))
            schema = batches.schema
    except (arrow.ArrowException, OSError) as error:
        raise unreadable(source.path, error) from None
    return Table(
        name=source.path,
        kind=kind,
        items=_items(batches, source.path, arrow.ArrowException),
        columns=tuple(dict.fromkeys(schema.names)),
        repeated=frozenset(name for name in schema.names if schema.names.count(name) > 1),
        unit="row",
        class_names=_class_names(schema.metadata or {}),
    )


def _items(batches: Iterable[Any], name: str, damage: type[Exception]) -> Iterator[Item]:
    number = 0
    try:
        for batch in batches:
            for start in range(0, batch.num_rows, _ROWS):
                for record in batch.slice(start, _ROWS).to_pylist():
                    number += 1
                    yield number, record
    except (damage, OSError, UnicodeDecodeError) as error:
        raise unreadable(f"{name}, after row {number}", error) from None


def _class_names(metadata: Mapping[bytes, bytes]) -> dict[str, tuple[str, ...]]:
    """The class names of `ClassLabel` columns, which the datasets library stores in a file's schema."""
    try:
        return feature_names(json.loads(metadata[b"huggingface"])["info"]["features"])
    except (KeyError, ValueError, TypeError):
        return {}


def feature_names(features: Any) -> dict[str, tuple[str, ...]]:
    """Column -> names of its class numbers, from the `features` of a data set's description; lists of classes too."""
    class_names: dict[str, tuple[str, ...]] = {}
    for column, feature in features.items() if isinstance(features, dict) else ():
        if isinstance(feature, list) and len(feature) == 1:
            feature = feature[0]
        while isinstance(feature, dict) and isinstance(feature.get("feature"), dict):
            feature = feature["feature"]
        names = feature.get("names") if isinstance(feature, dict) else None
        if isinstance(names, list) and names:
            class_names[column] = tuple(map(str, names))
    return class_names


def is_saved_dataset(folder: Path) -> bool:
    """Whether `Dataset.save_to_disk` has written this folder."""
    return (folder / _STATE).is_file() and (folder / _INFO).is_file()


def saved_files(folder: Path) -> tuple[list[Path], dict[str, tuple[str, ...]]]:
    """The Arrow files of a folder of `save_to_disk`, in order, and its class names. Raises `InputFileError`."""
    state, info = _read(folder / _STATE), _read(folder / _INFO)
    if state.get("_indices_data_files"):
        raise InputFileError(f"{folder} is a selection of rows by an old version of datasets; save it to disk again")
    entries = state.get("_data_files")
    names = [str(entry.get("filename")) for entry in entries or () if isinstance(entry, dict)]
    if not names or any(name != Path(name).name for name in names):
        raise InputFileError(f"{folder / _STATE} names no data files beside it; save the data set to disk again")
    files = [folder / name for name in names]
    for file in files:
        if not file.is_file():
            raise InputFileError(f"{folder} is incomplete: {file.name} is missing; copy the whole folder again")
    return files, feature_names(info.get("features"))


def saved_splits(folder: Path) -> list[str] | None:
    """The splits of a folder of `DatasetDict.save_to_disk`; None for another folder. Raises `InputFileError`."""
    file = folder / "dataset_dict.json"
    if not file.is_file():
        return None
    splits = _read(file).get("splits")
    if not isinstance(splits, list) or not all(
        isinstance(split, str) and split == Path(split).name for split in splits
    ):
        raise InputFileError(f"{file} names no splits; save the data set to disk again")
    return splits


def _read(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise unreadable(str(path), error) from None
    if not isinstance(value, dict):
        raise InputFileError(f"{path} is not a JSON object; save the data set to disk again")
    return value
