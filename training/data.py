"""Training data: rows with a text and a label become texts and targets."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import datasets
import numpy as np

from nopad.model.head import PROBLEM_TYPES, ProblemType
from nopad.runtime.data.fields import LABEL_COLUMNS, TEXT_COLUMNS
from nopad.runtime.data.labels import listed, split_columns
from nopad.runtime.data.table import DataSource
from nopad.runtime.errors import UsageError
from nopad.training.errors import DataError
from nopad.training.labels import MULTI, LabelColumn, describe, remarks_on_classes, understand_labels, zeros_and_ones
from nopad.training.recipe import EVAL_FRACTION, Recipe
from nopad.training.sources import Rows
from nopad.training.splits import hold_out, read_parts, rows_to_hold_out
from nopad.training.tasks.base import Task
from nopad.training.tasks.registry import TASKS


@dataclass(frozen=True, kw_only=True)
class TrainingData:
    """Rows ready for `task.encode`: of texts that are classified, columns `text` and `target`."""

    train: Any  # datasets.Dataset
    evaluation: Any
    task: Task
    labels: tuple[str, ...]
    problem_type: ProblemType | None  # of texts that are classified
    summary: str  # the classes and their rows, or the number to learn
    remarks: tuple[str, ...]  # rows left out, labels that may mean something else


@dataclass(frozen=True, kw_only=True)
class _Example:
    text: str
    label: Any
    place: str


def load_data(
    source: DataSource | str,
    evaluation: DataSource | str | None = None,
    *,
    text_column: str | None = None,
    label_column: str | None = None,
    labels: Sequence[str] | None = None,
    problem_type: ProblemType | None = None,
    eval_fraction: float = EVAL_FRACTION,
    seed: int = Recipe.seed,
) -> TrainingData:
    """Read `source` (and `evaluation`, or a split of it, or a held-out fraction) and encode the labels.

    `label_column` may be several with commas between them: a column of zeros and ones for each label. Without
    `problem_type`, it follows from the labels of the training rows that have a text (docs/labels.md).
    Raises `DataError`, and `UsageError` for bad `labels` or a `problem_type` that does not go with the columns.
    """
    _check_options(labels, problem_type)
    rows, held_rows = read_parts(source, evaluation, wanted=[text_column] if text_column else TEXT_COLUMNS)
    text = rows.column(text_column, TEXT_COLUMNS, "--text-column")
    columns = [
        rows.column(name, LABEL_COLUMNS, "--label-column")
        for name in (split_columns(label_column, rows.columns) if label_column else [None])
    ]
    if held_rows is not None:
        held_rows.provide(text, "--text-column")
        for name in columns:
            held_rows.provide(name, "--label-column")
    examples, remarks = _examples(rows, text, columns, "training", labels)
    if held_rows is None:
        rows_to_hold_out(len(examples), eval_fraction)  # refused before the labels are looked at
    kind = _understand(rows, examples, columns, labels, problem_type)
    train = _encoded(examples, columns, kind, "training")
    targets = np.asarray(train.with_format("numpy")["target"][:])
    remarks = [*rows.remarks, *remarks, *kind.remarks, *remarks_on_classes(kind, targets)]
    if held_rows is None:
        train, test = hold_out(train, eval_fraction, seed)
    else:
        held_examples, held_remarks = _examples(held_rows, text, columns, "evaluation", labels)
        test = _encoded(held_examples, columns, kind, "evaluation")
        remarks += held_remarks
    return TrainingData(
        train=train,
        evaluation=test,
        task=TASKS[kind.problem_type](),
        labels=kind.names,
        problem_type=kind.problem_type,
        summary=describe(kind, targets),
        remarks=tuple(remarks),
    )


def _check_options(labels: Sequence[str] | None, problem_type: str | None) -> None:
    for name in labels or ():
        if not name.strip() or list(labels or ()).count(name) > 1:
            raise UsageError(f"--labels must name each label once, got {','.join(labels or ())!r}")
    if problem_type not in (None, *PROBLEM_TYPES):
        raise UsageError(f"--problem-type {problem_type!r} is unknown; known: {', '.join(PROBLEM_TYPES)}")


def _examples(
    rows: Rows, text: str, columns: Sequence[str], part: str, names: Sequence[str] | None
) -> tuple[list[_Example], list[str]]:
    """The rows that have a text, with their labels (of several columns, lists), and a remark on the rows left out."""
    examples = []
    class_names = rows.class_names if len(columns) == 1 else {}
    for record, place in zip(rows.records, rows.places, strict=True):
        value = rows.text(record, text)
        if not isinstance(value, str) or not value.strip():
            continue
        cells = [_label(record.get(name), name, place, class_names.get(name, ()), names) for name in columns]
        try:
            value.encode()
        except UnicodeEncodeError:
            raise DataError(f"{place}: column {text!r} holds half a character (a lone surrogate); mend it") from None
        examples.append(_Example(text=value, label=cells if len(cells) > 1 else cells[0], place=place))
    if not examples:
        raise DataError(f"the {part} data has no row with text in column {text!r}")
    blank = len(rows.records) - len(examples)
    remark = f"{blank:,} of {len(rows.records):,} rows of the {part} data have no text in column {text!r}: left out"
    return examples, [remark] if blank else []


def _label(value: Any, column: str, place: str, class_names: Sequence[str], names: Sequence[str] | None) -> Any:
    """A cell's label, or list of labels; the numbers of a column that has `class_names` of its own become those."""
    if value is None or (isinstance(value, str) and not value.strip()):
        raise DataError(f"{place}: column {column!r} has no value; fill it in, or remove the row")
    items = []
    for item in value if isinstance(value, list) else [value]:
        if isinstance(item, Decimal):  # a database's numbers, in Parquet
            item = int(item) if item == item.to_integral_value() else float(item)
        if not isinstance(item, str | int | float):
            raise DataError(f"{place}: column {column!r}: {value!r:.80} is not a text, a number or a list of them")
        if isinstance(item, float) and not math.isfinite(item):
            raise DataError(f"{place}: column {column!r}: label {item!r} is not finite")
        if class_names and isinstance(item, int):
            if not 0 <= item < len(class_names):
                raise DataError(
                    f"{place}: column {column!r}: label {item} is not a number of the data's own classes "
                    f"{listed(class_names)}"
                )
            # Other names in --labels rename the same numbers.
            item = class_names[item] if not names or set(class_names) <= set(names) else item
        items.append(item)
    return items if isinstance(value, list) else items[0]


def _understand(
    rows: Rows,
    examples: Sequence[_Example],
    columns: Sequence[str],
    names: Sequence[str] | None,
    problem_type: ProblemType | None,
) -> LabelColumn:
    values = [example.label for example in examples]
    if len(columns) > 1 and problem_type not in (None, MULTI):
        raise UsageError(f"several columns in --label-column are {MULTI}, not {problem_type}")
    if len(columns) > 1 or (problem_type == MULTI and not any(isinstance(value, list) for value in values)):
        return zeros_and_ones(columns, names or ())
    (column,) = columns
    # pandas stores a column of integers as floats where a cell is empty.
    gaps = any(record.get(column) in (None, "") or record[column] != record[column] for record in rows.records)
    names = names or rows.class_names.get(column, ())
    return understand_labels(values, column, names=names, problem_type=problem_type, gaps=gaps)


def _encoded(examples: Sequence[_Example], columns: Sequence[str], kind: LabelColumn, part: str) -> Any:
    targets: list[Any] = []
    wrong: list[tuple[_Example, Exception]] = []
    for example in examples:
        try:
            targets.append(kind.encode(example.label))
        except (ValueError, OverflowError) as error:
            wrong.append((example, error))
    if wrong:
        first, reason = wrong[0]
        message = f"{first.place}: column {','.join(columns)!r}: label {first.label!r:.80} {reason}"
        if len(wrong) > 1:
            counts = Counter(f"{example.label!r:.40}" for example, _ in wrong).most_common()
            rows = listed([f"{label} ({count:,} rows)" for label, count in counts])
            message += f"; in all {len(wrong):,} rows of the {part} data: {rows}"
        raise DataError(f"{message}; mend or remove them")
    return datasets.Dataset.from_dict({"text": [example.text for example in examples], "target": targets})
