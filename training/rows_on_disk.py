"""Rows on disk: training data waits in temporary files, read when it is asked for, so that it may exceed memory.

The files have no name once they are written: the system removes them when the process ends, however it ends.
"""

from __future__ import annotations

import json
import tempfile
import weakref
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, time
from decimal import Decimal
from itertools import islice
from typing import Any, TypeVar, overload
from uuid import uuid4

import datasets
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from nopad.runtime.data.temporary import room_for_rows, temporary_folder

T = TypeVar("T")

_IN_MEMORY = 2**20  # bytes of records: fewer are not written at all
_BATCH = 100  # rows of a data set that are Python objects at once
_CHARACTERS = 2**16  # about so many are tokenized at once: cut pairs of long texts take a kilobyte for each
_MARK = uuid4().hex  # the key of what JSON does not know; no record has it
_READ: dict[str, Callable[[str], Any]] = {
    "datetime": datetime.fromisoformat,
    "date": date.fromisoformat,
    "time": time.fromisoformat,
    "decimal": Decimal,
}


class Lazily(Sequence[T]):
    """A sequence whose items are made whenever they are read, of their place from 0."""

    def __init__(self, make: Callable[[int], T], length: int) -> None:
        self._make, self._length = make, length

    def __len__(self) -> int:
        """How many there are."""
        return self._length

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[T]: ...
    def __getitem__(self, index: int | slice) -> T | Sequence[T]:
        """Make one, or, of a slice, say which are to be made."""
        places = range(self._length)[index]
        if isinstance(places, range):
            return Lazily(lambda place: self._make(places[place]), len(places))
        return self._make(places)

    def __iter__(self) -> Iterator[T]:
        """Make one after another."""
        return map(self._make, range(self._length))


def chosen(rows: Sequence[T], places: npt.NDArray[np.int64] | Sequence[int]) -> Sequence[T]:
    """The rows at those places."""
    return Lazily(lambda place: rows[int(places[place])], len(places))


class Records:
    """Records, and the place of each for messages, in the order in which they were added. Read when all are there."""

    def __init__(self) -> None:
        # Open as long as there are the records.
        self._file = tempfile.SpooledTemporaryFile(_IN_MEMORY, buffering=2**16, dir=temporary_folder())  # noqa: SIM115
        weakref.finalize(self, self._file.close)
        self._ends = array("q", [0])

    def add(self, record: Mapping[str, Any], place: str) -> None:
        """Keep another. Raises `EnvironmentProblem` where the disk is full."""
        line = _ENCODER.encode([record, place]).encode("utf-8", "surrogatepass")
        with room_for_rows():
            self._file.write(line)
        self._ends.append(self._ends[-1] + len(line))

    def __len__(self) -> int:
        """How many there are."""
        return len(self._ends) - 1

    def __getitem__(self, index: int) -> tuple[dict[str, Any], str]:
        """The record with its place. Values are as they were, but a tuple is a list, and what is no data is opaque."""
        with room_for_rows():  # what was added last may be written only now
            self._file.seek(self._ends[index])
            line = self._file.read(self._ends[index + 1] - self._ends[index])
        record, place = _DECODER.decode(line.decode("utf-8", "surrogatepass"))
        return record, place


@dataclass(frozen=True)
class _Opaque:
    """A value that no text, label or group can be (bytes, say): what messages show of it."""

    shown: str

    def __repr__(self) -> str:
        return self.shown


def _marked(value: Any) -> dict[str, tuple[str, str]]:
    kind = next((kind for kind in (datetime, date, time) if isinstance(value, kind)), None)
    if kind is not None:
        return {_MARK: (kind.__name__, value.isoformat())}
    return {_MARK: ("decimal", str(value)) if isinstance(value, Decimal) else ("", repr(value))}


def _unmarked(value: dict[str, Any]) -> Any:
    if _MARK not in value:
        return value
    kind, text = value[_MARK]
    return _READ.get(kind, _Opaque)(text)


_ENCODER = json.JSONEncoder(ensure_ascii=False, check_circular=False, default=_marked)
_DECODER = json.JSONDecoder(object_hook=_unmarked)


def as_dataset(rows: Iterable[Mapping[str, Any]], features: Mapping[str, Any]) -> Any:
    """The rows as a `datasets.Dataset` that is mapped from disk; `features` are its columns' types, as `datasets` has
    them.

    Raises `EnvironmentProblem` where the disk is full.
    """
    schema = datasets.Features(features).arrow_schema
    with room_for_rows(), tempfile.NamedTemporaryFile(suffix=".arrow", dir=temporary_folder()) as file:
        with pa.ipc.new_stream(file, schema) as writer:
            left = iter(rows)
            while batch := list(islice(left, _BATCH)):
                writer.write_batch(pa.RecordBatch.from_pylist(batch, schema=schema))
        file.flush()
        table = pa.ipc.open_stream(pa.memory_map(file.name)).read_all()
    return datasets.Dataset(table, fingerprint=uuid4().hex)  # else all rows are hashed, in memory


def column_of(rows: Any, name: str) -> npt.NDArray[Any]:
    """A column of numbers of what `as_dataset` has made, [rows]."""
    return np.asarray(rows.data.column(name).to_numpy())


def tokenize(rows: Any, encode: Callable[..., dict[str, list[Any]]], *, remove: Sequence[str]) -> Any:
    """Map a data set by `encode`, some rows at a time, to one on disk. Raises `EnvironmentProblem` if that is full."""
    size = max(1, min(1000, _CHARACTERS * len(rows) // max(rows.data.nbytes, 1)))
    with room_for_rows(), tempfile.TemporaryDirectory(dir=temporary_folder()) as folder:
        return rows.map(
            encode,
            batched=True,
            batch_size=size,
            remove_columns=list(remove),
            cache_file_name=f"{folder}/tokens.arrow",
            load_from_cache_file=False,
            new_fingerprint=uuid4().hex,
            desc="Tokenizing",
        )
