"""Reading texts with true labels (`--data`) for the model that a manifest describes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

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
# Lists of zeros and ones are those of nearly all rows, or a few lists of labels that look like them.
_MOST = 0.9


class BadRow(NamedTuple):
    """A row that cannot be used: its number (`Row.line`), its place and the reason, without the place."""

    line: int
    place: str
    reason: str
    label: str | None = None  # where the reason is that the model does not know it


@dataclass(frozen=True, kw_only=True)
class LabelledTexts:
    """Texts of a data file, or pairs of texts; `targets` is None if it has no labels."""

    texts: list[str]
    seconds: list[str] | None = None  # of pairs
    targets: Targets | None = None
    entities: list[frozenset[EntityPlace]] | None = None  # of taggers: the true ones of each text
    # Where they stood: their numbers, and their columns `keep`, None for one that a row lacks.
    lines: list[int] = field(default_factory=list, compare=False)
    kept: list[Mapping[str, Any]] = field(default_factory=list, compare=False)
    bad: list[BadRow] = field(default_factory=list)  # rows that were left out

    @property
    def inputs(self) -> Sequence[Text]:
        """What a model is asked."""
        return self.texts if self.seconds is None else list(zip(self.texts, self.seconds, strict=True))


class _UnknownLabel(ValueError):
    def __init__(self, label: Any, names: Sequence[str]) -> None:
        super().__init__(f"label {label!r} is not among {listed(names)}")
        self.label = label


class _Rows:
    """The rows that are read from a table; what is wrong with a row is raised, or kept beside them."""

    def __init__(self, table: Table, *, skip: bool) -> None:
        self._table, self._skip = table, skip
        self.bad: list[BadRow] = []

    def refuse(self, line: int, reason: object, label: str | None = None) -> None:
        """Leave a row out. Raises `InputFileError` unless bad rows are skipped."""
        place = self._table.place(line)
        if not self._skip:
            raise InputFileError(f"{place}: {reason}") from None
        self.bad.append(BadRow(line, place, str(reason), label))

    def texts(
        self, fields: Sequence[tuple[Field, str]], limit: int | None
    ) -> Iterator[tuple[int, list[str], dict[str, Any]]]:
        """Number, texts and record of each row that has them; `fields` with their options."""
        for line, record in islice(self._table.items, limit):
            if isinstance(record, str):
                self.refuse(line, record)
                continue
            try:
                found = [_text(field, record, option) for field, option in fields]
            except ValueError as error:
                self.refuse(line, error)
            else:
                yield line, found, record


def read_labelled(
    source: DataSource | str | Path,
    manifest: Manifest,
    *,
    text_field: str | None = None,
    second_field: str | None = None,
    label_field: str | None = None,
    limit: int | None = None,
    keep: Sequence[str] = (),
    skip_bad: bool = False,
) -> LabelledTexts:
    """Read a file or folder for the classifier or tagger that `manifest` describes; for embeddings, only the texts.

    With `second_field`, rows are pairs of texts; for a reranker they must be, and have no labels.
    A label is a name or, if no name consists of digits, its index (`labels.py`, as in training). It is a list of those,
    or of zeros and ones, where a text can have several labels, and a number for regression. `label_field` may be
    several columns separated by commas: zeros and ones for each label. A tagger's rows are lists of words and of their
    tags (CoNLL files, too), texts with marked entities, or texts alone. Without the fields, common names are looked for
    (`nopad.runtime.data.fields`). `keep` names columns to carry along. With `skip_bad`, a row without a text or with a
    label that cannot be read is left out and told in `bad` (not of a tagger). Raises `InputFileError`, `UsageError`.
    """
    _check_task(manifest, second_field)
    with _open(source, text_field) as table:
        if manifest.task == "token-classification":
            return _read_tagged(table, manifest.labels, text_field, label_field, limit)
        rows = _Rows(table, skip=skip_bad)
        fields = [(Field(table, text_field, TEXT_COLUMNS, "--text-field"), "--text-field")]
        if second_field is not None:
            fields.append((Field(table, second_field, (), "--second-field"), "--second-field"))
        labelled = manifest.task == "text-classification"
        label_fields = _label_fields(table, label_field, manifest.labels) if labelled else []
        kept_fields = {name: Field(table, name, (), "--slice-field") for name in keep}
        read: list[_Read] = []
        for line, texts, record in rows.texts(fields, limit):
            try:
                label = _label(record, label_fields) if labelled else None
                kept = {name: _kept(column.value(record)) for name, column in kept_fields.items()}
            except ValueError as error:
                rows.refuse(line, error)
                continue
            read.append(_Read(line, texts, _by_name(label, table, label_fields, manifest.labels), kept))
        targets = None
        unlabelled = all(one.label is None for one in read) and (label_field is None or table.columns is not None)
        if labelled and not unlabelled:
            read, targets = _with_targets(read, rows, label_fields, manifest.head, skip=skip_bad)
    return LabelledTexts(
        texts=[one.texts[0] for one in read],
        seconds=None if second_field is None else [one.texts[1] for one in read],
        targets=targets,
        lines=[one.line for one in read],
        kept=[one.kept for one in read],
        bad=rows.bad,
    )


class _Read(NamedTuple):
    line: int
    texts: list[str]
    label: Any  # None: the row has none
    kept: Mapping[str, Any]


def _with_targets(
    read: Sequence[_Read], rows: _Rows, fields: Sequence[Field], head: Head, *, skip: bool
) -> tuple[list[_Read], Targets]:
    """The rows whose labels can be read, and their targets."""
    labels = [one.label for one in read if one.label is not None]
    named = ",".join(str(field.name) for field in fields)
    missing = len(read) - len(labels)
    target = _target_of(labels, head, tolerant=skip)
    good, targets = [], []
    for one in read:
        if one.label is None and skip:
            rows.refuse(one.line, f"no label in field {named!r}")
            continue
        if one.label is None:
            rows.refuse(
                one.line,
                f"no label in field {named!r} ({missing} of {len(read)} rows have none); label all rows or none",
            )
        try:
            targets.append(target(one.label))
        except (ValueError, OverflowError) as error:
            rows.refuse(one.line, error, str(error.label) if isinstance(error, _UnknownLabel) else None)
        else:
            good.append(one)
    return good, np.array(targets, dtype=np.float64).reshape(len(good), len(head.labels))


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
        try:
            true = _label(record, [true_of]) if labelled else None
            if of_words:
                text, words = joined_words(text_of.value(record))
                if true is not None:
                    tags = _by_name(true, table, [true_of], labels)
                    entities.append(tagged_entities(words, tags, labels))
                elif labelled:
                    missing.append(place)
            else:
                text = _text(text_of, record, "--text-field")
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
        fields = [(Field(table, text_field, TEXT_COLUMNS, "--text-field"), "--text-field")]
        return [text for _, (text,), _ in _Rows(table, skip=False).texts(fields, limit)]


def _open(source: DataSource | str | Path, text_field: str | None) -> AbstractContextManager[Table]:
    source = str(source) if isinstance(source, Path) else source
    return open_table(source, wanted=[text_field] if text_field else TEXT_COLUMNS)


def _records(table: Table, limit: int | None) -> Iterator[tuple[str, dict[str, Any]]]:
    """Place and record of each row. Raises `InputFileError` at a bad one."""
    for number, record in islice(table.items, limit):
        place = table.place(number)
        if isinstance(record, str):
            raise InputFileError(f"{place}: {record}")
        yield place, record


def _text(field: Field, record: Mapping[str, Any], option: str) -> str:
    """The text of a record. Raises `ValueError` with the reason why it has none."""
    text = field.text(record)
    if not text.strip():
        raise ValueError(f"no text in field {field.name!r}; name one with {option}")
    return text


def _kept(value: Any) -> Any:
    return None if value is MISSING else value


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


def _label(record: Mapping[str, Any], fields: Sequence[Field]) -> Any:
    """The label of a row, None if it has none; for several columns, a tuple of their cells. Raises `ValueError`."""
    try:
        cells = [field.value(record) for field in fields]
    except ValueError as error:
        raise ValueError(f"{error}; name one with --label-field") from None
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


def _target_of(labels: Sequence[Any], head: Head, *, tolerant: bool) -> Callable[[Any], list[float]]:
    """The function that turns a label into a row of targets, or raises `ValueError` with the reason.

    `tolerant`: that some rows are broken does not change how the others are read.
    """
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
                raise _UnknownLabel(item, names)
            row[index] = 1.0
        return row

    if not head.has_labels:
        return numbers
    columns = all(isinstance(label, tuple) for label in labels)
    hot = sum(is_hot(label, len(names)) for label in labels)
    alone = len(names) == 1 and not any(isinstance(label, list) or label == names[0] for label in labels)
    if several and (columns or alone or hot >= len(labels) * (_MOST if tolerant else 1)):
        return zeros_and_ones
    return classes
