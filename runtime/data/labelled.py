"""Reading texts with true labels (`--data`) for the model that a manifest describes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from nopad.model.head import Head, Task
from nopad.runtime.data.fields import LABEL_COLUMNS, MISSING, TEXT_COLUMNS, Field
from nopad.runtime.data.labels import is_hot, label_finder, listed, spelled_number, split_columns, zero_or_one
from nopad.runtime.data.records import open_table
from nopad.runtime.data.table import DataSource, Table
from nopad.runtime.data.tagged import (
    SPAN_COLUMNS,
    TAG_COLUMNS,
    WORD_COLUMNS,
    EntityPlace,
    joined_words,
    marked_entities,
    tagged_entities,
)
from nopad.runtime.errors import InputFileError, UsageError
from nopad.runtime.manifest import Manifest
from nopad.runtime.types import Text

# [rows, num_labels]: 0 and 1 for classes, the values themselves for regression.
Targets = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class LabelledTexts:
    """Texts of a data file, or pairs of texts; `targets` is None if it has no labels."""

    texts: list[str]
    seconds: list[str] | None = None  # of pairs
    targets: Targets | None = None
    entities: list[frozenset[EntityPlace]] | None = None  # of taggers: the true ones of each text

    @property
    def inputs(self) -> Sequence[Text]:
        """What a model is asked."""
        return self.texts if self.seconds is None else list(zip(self.texts, self.seconds, strict=True))


def read_labelled(
    source: DataSource | str | Path,
    manifest: Manifest,
    *,
    text_field: str | None = None,
    second_field: str | None = None,
    label_field: str | None = None,
    limit: int | None = None,
) -> LabelledTexts:
    """Read a file or folder for the classifier or tagger that `manifest` describes; for embeddings, only the texts.

    With `second_field`, rows are pairs of texts; for a reranker they must be, and have no labels.
    A label is a name or, if no name consists of digits, its index (`labels.py`, as in training). It is a list of those,
    or of zeros and ones, where a text can have several labels, and a number for regression. `label_field` may be
    several columns separated by commas: zeros and ones for each label. A tagger's rows are lists of words and of their
    tags (CoNLL files, too), texts with marked entities, or texts alone. Without the fields, common names are looked for
    (`nopad.runtime.data.fields`). Raises `InputFileError`, `UsageError`.
    """
    _check_task(manifest, second_field)
    texts: list[str] = []
    seconds: list[str] | None = None if second_field is None else []
    labels: list[Any] = []  # None where a row has no label
    places: list[str] = []
    with _open(source, text_field) as table:
        if manifest.task == "token-classification":
            return _read_tagged(table, manifest.labels, text_field, label_field, limit)
        second = None if second_field is None else Field(table, second_field, (), "--second-field")
        labelled = manifest.task == "text-classification"
        fields = _label_fields(table, label_field, manifest.labels) if labelled else []
        for place, text, record in _texts(table, text_field, limit):
            texts.append(text)
            if second is not None and seconds is not None:
                seconds.append(_text(second, record, place, "--second-field"))
            if not labelled:
                continue
            labels.append(_by_name(_label(record, fields, place), table, fields, manifest.labels))
            places.append(place)
    missing = [place for place, label in zip(places, labels, strict=True) if label is None]
    if not labelled or (len(missing) == len(texts) and (label_field is None or table.columns is not None)):
        return LabelledTexts(texts=texts, seconds=seconds)
    _require_labels(missing, len(texts), fields)
    target = _target_of(labels, manifest.head)
    rows = []
    for place, label in zip(places, labels, strict=True):
        try:
            rows.append(target(label))
        except (ValueError, OverflowError) as error:
            raise InputFileError(f"{place}: {error}") from None
    return LabelledTexts(texts=texts, seconds=seconds, targets=np.array(rows, dtype=np.float64))


def _require_labels(missing: Sequence[str], rows: int, fields: Sequence[Field]) -> None:
    """Raises `InputFileError` if some of the rows, at the places `missing`, have no label."""
    if missing:
        named = ",".join(str(field.name) for field in fields)
        none = f"no label in field {named!r} ({len(missing)} of {rows} rows have none)"
        raise InputFileError(f"{missing[0]}: {none}; label all rows or none")


def _read_tagged(
    table: Table, labels: tuple[str, ...], text_field: str | None, label_field: str | None, limit: int | None
) -> LabelledTexts:
    """Texts for a tagger, and their true entities where the rows have tags (of words) or marked entities (of texts)."""
    text_of = Field(table, text_field, (*WORD_COLUMNS, *TEXT_COLUMNS), "--text-field")
    of_words = any(isinstance(text_of.value(record), list) for record in table.sample)
    known = TAG_COLUMNS if of_words else SPAN_COLUMNS
    true_of = Field(table, label_field, known, "--label-field", required=label_field is not None)
    labelled = label_field is not None or any(isinstance(true_of.value(record), list) for record in table.sample)
    texts: list[str] = []
    entities: list[frozenset[EntityPlace]] = []
    missing: list[str] = []
    for place, record in _records(table, limit):
        true = _label(record, [true_of], place) if labelled else None
        try:
            if of_words:
                text, words = joined_words(text_of.value(record))
                if true is not None:
                    tags = _by_name(true, table, [true_of], labels)
                    entities.append(tagged_entities(words, tags, labels))
                elif labelled:
                    missing.append(place)
            else:
                text = _text(text_of, record, place, "--text-field")
                entities.append(marked_entities(text, true, labels))
        except ValueError as error:
            raise InputFileError(f"{place}: {error} (columns are named by --text-field and --label-field)") from None
        texts.append(text)
    if label_field is not None or len(missing) < len(texts):
        _require_labels(missing, len(texts), [true_of])
    return LabelledTexts(texts=texts, entities=entities if labelled and not missing else None)


def read_texts(
    source: DataSource | str | Path, *, text_field: str | None = None, limit: int | None = None
) -> list[str]:
    """The texts of a source, without its labels. Raises `InputFileError` at the first row that has no text."""
    with _open(source, text_field) as table:
        return [text for _, text, _ in _texts(table, text_field, limit)]


def _open(source: DataSource | str | Path, text_field: str | None) -> AbstractContextManager[Table]:
    source = str(source) if isinstance(source, Path) else source
    return open_table(source, wanted=[text_field] if text_field else TEXT_COLUMNS)


def _texts(table: Table, text_field: str | None, limit: int | None) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Place, text and record of each row."""
    text_of = Field(table, text_field, TEXT_COLUMNS, "--text-field")
    for place, record in _records(table, limit):
        yield place, _text(text_of, record, place, "--text-field"), record


def _records(table: Table, limit: int | None) -> Iterator[tuple[str, dict[str, Any]]]:
    """Place and record of each row. Raises `InputFileError` at a bad one."""
    for number, record in islice(table.items, limit):
        place = table.place(number)
        if isinstance(record, str):
            raise InputFileError(f"{place}: {record}")
        yield place, record


def _text(field: Field, record: Mapping[str, Any], place: str, option: str) -> str:
    try:
        text = field.text(record)
    except ValueError as error:
        raise InputFileError(f"{place}: {error}") from None
    if not text.strip():
        raise InputFileError(f"{place}: no text in field {field.name!r}; name one with {option}")
    return text


def _check_task(manifest: Manifest, second_field: str | None) -> None:
    task = manifest.task
    known = ("text-classification", "token-classification", "embeddings", "rerank")
    if task not in known:
        raise UsageError(f"--data is for {', '.join(known)}; this bundle does {task}")
    check_pairs(task, second_field)


def check_pairs(task: Task, second_field: str | None) -> None:
    """Raises `UsageError` for pairs where a model of this task reads none, and for single texts of a reranker."""
    if task not in ("text-classification", "rerank") and second_field is not None:
        raise UsageError(f"--second-field: a model of {task} reads no pairs; name the text with --text-field")
    if task == "rerank" and second_field is None:
        raise UsageError("a reranker reads pairs: name the query with --text-field, the passage with --second-field")


def _label_fields(table: Table, label_field: str | None, names: Sequence[str]) -> list[Field]:
    """The field of the label; for several columns, their fields in the order of `names`."""
    available = table.columns if table.columns is not None else [name for record in table.sample for name in record]
    columns = split_columns(label_field, list(available)) if label_field is not None else [None]
    if len(columns) > 1 and sorted(map(str, columns)) == sorted(names):
        columns = list(names)
    required = label_field is not None
    return [Field(table, column, LABEL_COLUMNS, "--label-field", required=required) for column in columns]


def _label(record: Mapping[str, Any], fields: Sequence[Field], place: str) -> Any:
    """The label of a row, None if it has none; for several columns, a tuple of their cells."""
    try:
        cells = [field.value(record) for field in fields]
    except ValueError as error:
        raise InputFileError(f"{place}: {error}; name one with --label-field") from None
    blank = [cell is MISSING or cell != cell or (isinstance(cell, str) and not cell.strip()) for cell in cells]
    cells = [None if empty else cell for cell, empty in zip(cells, blank, strict=True)]
    if len(cells) == 1:
        return cells[0]
    return None if None in cells else tuple(cells)


def _by_name(label: Any, table: Table, fields: Sequence[Field], names: Sequence[str]) -> Any:
    """The label as a name, if the data name their class numbers as the bundle does: the order may differ."""
    class_names = table.class_names.get(str(fields[0].name), ()) if len(fields) == 1 else ()
    if not class_names or not set(class_names) <= set(names):
        return label
    items = label if isinstance(label, list) else [label]
    named = [class_names[item] if isinstance(item, int) and 0 <= item < len(class_names) else item for item in items]
    return named if isinstance(label, list) else named[0]


def _target_of(labels: Sequence[Any], head: Head) -> Callable[[Any], list[float]]:
    """The function that turns a label into a row of targets, or raises `ValueError` with the reason."""
    names, several = head.labels, head.multi_label
    find = label_finder(names)

    def numbers(label: Any) -> list[float]:
        cells = [spelled_number(item) for item in (label if isinstance(label, list) else [label])]
        if len(cells) != len(names) or any(cell is None or not math.isfinite(cell) for cell in cells):
            raise ValueError(f"label {label!r} is not {len(names)} finite number{'s' if len(names) > 1 else ''}")
        return [float(cell) for cell in cells if cell is not None]

    def zeros_and_ones(label: Any) -> list[float]:
        cells = label if isinstance(label, list | tuple) else [label]
        if len(cells) != len(names):
            raise ValueError(f"{len(cells)} cells for {len(names)} labels: {listed(names)}")
        try:
            return [zero_or_one(cell) for cell in cells]
        except ValueError as error:
            raise ValueError(f"label {label!r:.80} {error}") from None

    def classes(label: Any) -> list[float]:
        row = [0.0] * len(names)
        for item in label if several and isinstance(label, list) else [label]:
            if (index := find(item)) is None:
                raise ValueError(f"label {item!r} is not among {listed(names)}")
            row[index] = 1.0
        return row

    if not head.has_labels:
        return numbers
    columns = all(isinstance(label, tuple) for label in labels)
    alone = len(names) == 1 and not any(isinstance(label, list) or label == names[0] for label in labels)
    if several and (columns or alone or all(is_hot(label, len(names)) for label in labels)):
        return zeros_and_ones
    return classes
