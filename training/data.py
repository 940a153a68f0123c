"""Training data: rows with a text and a label become texts and targets."""

from __future__ import annotations

import math
from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import datasets
import numpy as np
import numpy.typing as npt

from nopad.model.head import PROBLEM_TYPES, ProblemType
from nopad.runtime.data.fields import LABEL_COLUMNS, TEXT_COLUMNS
from nopad.runtime.data.labels import is_hot, label_finder, listed, split_columns
from nopad.runtime.errors import UsageError
from nopad.training.bad_rows import (
    ON_BAD_ROW,
    ON_DUPLICATE,
    BadRows,
    OnBadRow,
    OnDuplicate,
    checked_text,
    has_half_a_character,
)
from nopad.training.class_weights import task_with_weights
from nopad.training.errors import DataError
from nopad.training.labels import (
    MULTI,
    REGRESSION,
    SINGLE,
    LabelColumn,
    describe,
    remarks_on_classes,
    understand_labels,
    zeros_and_ones,
)
from nopad.training.recipe import EVAL_FRACTION, Recipe
from nopad.training.repeats import BETWEEN, LabelledText
from nopad.training.rows_on_disk import Lazily, as_dataset, column_of
from nopad.training.sources import Rows, Sources
from nopad.training.splits import divide, group_column, read_parts, rows_to_hold_out
from nopad.training.tasks.base import Task


@dataclass(frozen=True, kw_only=True)
class TrainingData:
    """Rows ready for `task.encode`: of texts that are classified, columns `text`, `target`, of pairs `text_pair`."""

    train: Any  # datasets.Dataset
    evaluation: Any
    task: Task
    labels: tuple[str, ...]
    problem_type: ProblemType | None  # of texts that are classified
    summary: str  # the classes and their rows, or the number to learn
    remarks: tuple[str, ...]  # rows left out, labels that may mean something else


@dataclass(frozen=True, kw_only=True)
class _Columns:
    text: str
    pair: str | None
    labels: list[str]
    group: str | None


@dataclass(frozen=True, kw_only=True)
class _Example:
    text: str
    pair: str | None
    label: Any  # of several columns, a list
    place: str
    group: Any


_Row = tuple[_Example, Any]  # with its target


@dataclass(frozen=True, kw_only=True)
class _Labels:
    """The labels of the rows that have a text, in memory."""

    values: list[Any]
    gaps: bool  # whether the column has cells without a value


def load_data(
    source: Sources,
    evaluation: Sources | None = None,
    *,
    text_column: str | None = None,
    text_pair_column: str | None = None,
    label_column: str | None = None,
    labels: Sequence[str] | None = None,
    problem_type: ProblemType | None = None,
    ordinal: bool = False,
    class_weights: str | None = None,
    eval_fraction: float = EVAL_FRACTION,
    split_group: str | None = None,
    duplicates: OnDuplicate = "keep",
    bad_rows: OnBadRow = "refuse",
    seed: int = Recipe.seed,
) -> TrainingData:
    """Read `source` (and `evaluation`, or a split of it, or a held-out fraction) and encode the labels.

    `label_column` may be several with commas between them: a column of zeros and ones for each label. Without
    `problem_type`, it follows from the labels of the training rows that have a text (docs/labels.md). A fraction that
    is held out has each class's share, or whole groups of the column `split_group`. `duplicates` is about training rows
    whose text an earlier one has, or the evaluation data. `ordinal`: classes have an order, that of `labels` or of
    their numbers.
    Raises `DataError`, and `UsageError` for bad `labels` or `class_weights`, or a `problem_type` that does not go with
    the columns.
    """
    _check_options(labels, problem_type, duplicates, bad_rows)
    bad, held_bad = BadRows(bad_rows, "training"), BadRows(bad_rows, "evaluation")
    wanted = [text_column] if text_column else TEXT_COLUMNS
    rows, held = read_parts(source, evaluation, wanted=wanted, bad_rows=(bad, held_bad))
    columns = _find_columns(rows, held, text_column, text_pair_column, label_column, split_group)
    examples, found, remarks = _examples(rows, columns, "training", labels, bad)
    if held is None:
        rows_to_hold_out(len(examples), eval_fraction)  # refused before the labels are looked at
    kind = _understand(rows, found, columns.labels, labels, SINGLE if ordinal else problem_type, skip=bad.skipped)
    if ordinal:
        _check_order(kind, problem_type)
    train, targets = _encoded(examples, found, columns.labels, kind, "training", bad)
    remarks = [*rows.remarks, *remarks, *kind.remarks, *remarks_on_classes(kind, targets)]
    test: Sequence[_Row] | None = None
    if held is not None:
        held_examples, held_found, held_remarks = _examples(held, columns, "evaluation", labels, held_bad)
        test, _ = _encoded(held_examples, held_found, columns.labels, kind, "evaluation", held_bad)
        remarks += [*held.remarks, *held_remarks]
    train, test, repeats = divide(
        train,
        test,
        as_text=_as_text,
        eval_fraction=eval_fraction,
        seed=seed,
        classes=_classes(kind, targets),
        groups=(example.group for example, _ in train) if split_group is not None else None,
        duplicates=duplicates,
        conflicts=kind.problem_type != REGRESSION,
        near=columns.pair is None,  # pairs often share one of their texts
    )
    data = _dataset(train)
    remarks += _lost_classes(kind, targets, data)
    return TrainingData(
        train=data,
        evaluation=_dataset(test),
        task=task_with_weights(kind, targets, class_weights, ordinal=ordinal),
        labels=kind.names,
        problem_type=kind.problem_type,
        summary=describe(kind, targets),
        remarks=(*remarks, *bad.remarks(), *held_bad.remarks(), *repeats),
    )


def _find_columns(
    rows: Rows, held: Rows | None, text: str | None, pair: str | None, label: str | None, group: str | None
) -> _Columns:
    """The columns of the training data, which the evaluation data then has, too. Raises `DataError`, `UsageError`."""
    columns = _Columns(
        text=rows.column(text, TEXT_COLUMNS, "--text-column"),
        pair=rows.column(pair, (), "--text-pair-column") if pair else None,
        labels=[
            rows.column(name, LABEL_COLUMNS, "--label-column")
            for name in (split_columns(label, rows.columns) if label else [None])
        ],
        group=group_column(rows, held, group),
    )
    if held is not None:
        held.provide(columns.text, "--text-column")
        if columns.pair is not None:
            held.provide(columns.pair, "--text-pair-column")
        for name in columns.labels:
            held.provide(name, "--label-column")
    return columns


def _check_options(labels: Sequence[str] | None, problem_type: str | None, duplicates: str, bad_rows: str) -> None:
    for name in labels or ():
        if not name.strip() or list(labels or ()).count(name) > 1:
            raise UsageError(f"--labels must name each label once, got {','.join(labels or ())!r}")
    if problem_type not in (None, *PROBLEM_TYPES):
        raise UsageError(f"--problem-type {problem_type!r} is unknown; known: {', '.join(PROBLEM_TYPES)}")
    for option, value, known in (("duplicates", duplicates, ON_DUPLICATE), ("bad-rows", bad_rows, ON_BAD_ROW)):
        if value not in known:
            raise UsageError(f"--{option} {value!r} is unknown; known: {', '.join(known)}")


def _check_order(kind: LabelColumn, problem_type: ProblemType | None) -> None:
    if problem_type not in (None, SINGLE):
        raise UsageError(f"--ordinal is for classes that have an order, not for {problem_type}; leave one of them out")
    if not kind.ordered:
        raise UsageError(f"--ordinal needs the order of {', '.join(kind.names[:10])}: name all with --labels, in order")


def _examples(
    rows: Rows, columns: _Columns, part: str, names: Sequence[str] | None, bad: BadRows
) -> tuple[Sequence[_Example], _Labels, list[str]]:
    """The rows that have a text, their labels, and a remark on the rows left out."""
    class_names = rows.class_names if len(columns.labels) == 1 else {}
    labels: list[Any] = []
    known: dict[Any, Any] = {}
    gaps = False

    def make(record: dict[str, Any], place: str) -> _Example | None:
        nonlocal gaps
        for name in columns.labels:
            gaps |= record.get(name) in (None, "") or record[name] != record[name]
        text = checked_text(rows.text(record, columns.text), columns.text)
        if text is None:
            return None
        pair = _second_text(rows, record, columns.pair)
        cells = [_label(record.get(name), name, class_names.get(name, ()), names) for name in columns.labels]
        label = cells if len(cells) > 1 else cells[0]
        group = record.get(columns.group) if columns.group else None
        return _Example(text=text, pair=pair, label=label, place=place, group=group)

    def see(example: _Example) -> None:  # equal texts once
        label = example.label
        labels.append(known.setdefault(label, label) if isinstance(label, str) else label)

    examples = rows.usable(make, bad, see)
    if not examples:
        reasons = "".join(f"; {remark}" for remark in bad.remarks())
        raise DataError(f"the {part} data has no row with text in column {columns.text!r}{reasons}")
    remarks = bad.remark_on_blank(len(rows), f"have no text in column {columns.text!r}")
    return examples, _Labels(values=labels, gaps=gaps), remarks


def _second_text(rows: Rows, record: dict[str, Any], column: str | None) -> str | None:
    if column is None:
        return None
    text = checked_text(rows.text(record, column), column)
    if text is None:
        raise ValueError(f"column {column!r} has no text, the second of the pair")
    return text


def _label(value: Any, column: str, class_names: Sequence[str], names: Sequence[str] | None) -> Any:
    """A cell's label, or list of labels; the numbers of a column that has `class_names` of its own become those.

    Raises `ValueError`.
    """
    if value is None or (isinstance(value, str) and not value.strip()):
        raise ValueError(f"column {column!r} has no value; fill it in")
    items = []
    for item in _items(value):
        if isinstance(item, Decimal):  # a database's numbers, in Parquet
            item = int(item) if item == item.to_integral_value() else float(item)
        if not isinstance(item, str | int | float):
            raise ValueError(f"column {column!r}: {value!r:.80} is not a text, a number or a list of them")
        if isinstance(item, str) and has_half_a_character(item):
            raise ValueError(f"column {column!r}: label {item!r:.80} holds half a character (a lone surrogate)")
        if isinstance(item, float) and not math.isfinite(item):
            raise ValueError(f"column {column!r}: label {item!r} is not finite")
        if class_names and isinstance(item, int):
            if not 0 <= item < len(class_names):
                raise ValueError(
                    f"column {column!r}: label {item} is not a number of the data's own classes {listed(class_names)}"
                )
            # Other names in --labels rename the same numbers.
            item = class_names[item] if not names or set(class_names) <= set(names) else item
        items.append(item)
    return items if isinstance(value, list) else items[0]


def _items(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _understand(
    rows: Rows,
    labels: _Labels,
    columns: Sequence[str],
    names: Sequence[str] | None,
    problem_type: ProblemType | None,
    *,
    skip: bool,
) -> LabelColumn:
    if len(columns) > 1 and problem_type not in (None, MULTI):
        raise UsageError(f"several columns in --label-column are {MULTI}, not {problem_type}")
    if len(columns) > 1 or (problem_type == MULTI and not any(isinstance(value, list) for value in labels.values)):
        return zeros_and_ones(columns, names or ())
    (column,) = columns
    values = labels.values
    if names and skip:  # rows of other labels are left out one by one
        find = label_finder(names)
        values = [
            value
            for value in values
            if is_hot(value, len(names)) or all(find(item) is not None for item in _items(value))
        ]
    names = names or rows.class_names.get(column, ())
    # pandas stores a column of integers as floats where a cell is empty.
    return understand_labels(values or labels.values, column, names=names, problem_type=problem_type, gaps=labels.gaps)


def _encoded(
    examples: Sequence[_Example],
    labels: _Labels,
    columns: Sequence[str],
    kind: LabelColumn,
    part: str,
    bad: BadRows,
) -> tuple[Sequence[_Row], npt.NDArray[Any]]:
    """The examples that have a target, with it, and all targets: [rows], or [rows, labels] of several labels."""
    kept = array("q")
    found: list[Any] = []
    wrong: list[tuple[int, Exception]] = []
    for index, label in enumerate(labels.values):
        try:
            found.append(kind.encode(label))
        except (ValueError, OverflowError) as error:
            wrong.append((index, error))
        else:
            kept.append(index)
    messages = [f"column {','.join(columns)!r}: label {labels.values[row]!r:.80} {error}" for row, error in wrong]
    if len(wrong) > 1 and not bad.skipped:
        counts = Counter(f"{labels.values[row]!r:.40}" for row, _ in wrong).most_common()
        every = listed([f"{label} ({count:,} rows)" for label, count in counts])
        messages[0] += f"; in all {len(wrong):,} rows of the {part} data: {every}"
    for (row, _), message in zip(wrong, messages, strict=True):
        bad.add(examples[row].place, message)
    targets = np.asarray(found)
    return Lazily(lambda row: (examples[kept[row]], targets[row].tolist()), len(kept)), targets


def _classes(kind: LabelColumn, targets: Any) -> Any:
    """By what rows are held out evenly: the class; of several labels, the rarest that a row has, -1 for none."""
    if kind.problem_type == MULTI:
        rare = np.argsort(targets.sum(axis=0), kind="stable")
        return np.where(targets.any(axis=1), rare[targets[:, rare].argmax(axis=1)], -1)
    return None if kind.problem_type == REGRESSION else targets


def _lost_classes(kind: LabelColumn, targets: Any, train: Any) -> list[str]:
    """The remark on classes whose rows are all held out, or dropped."""
    if kind.problem_type == REGRESSION:
        return []
    left = column_of(train, "target")
    if kind.problem_type == MULTI:
        left, targets = (np.stack(list(found)).sum(axis=0).nonzero()[0] for found in (left, targets))
    lost = [repr(kind.names[index]) for index in sorted(set(targets.tolist()) - set(left.tolist()))]
    return [f"all rows of {listed(lost)} are held out or dropped: nothing is learned of them"] if lost else []


def _as_text(row: _Row) -> LabelledText:
    example, target = row
    whole = BETWEEN.join(filter(None, (example.text, example.pair)))
    return LabelledText(text=whole, label=example.label, place=example.place, target=target)


def _dataset(rows: Sequence[_Row]) -> Any:
    example, target = rows[0]
    number = datasets.Value("int64" if isinstance(target, int) else "float64")
    features = {
        "text": datasets.Value("string"),
        **({"text_pair": datasets.Value("string")} if example.pair is not None else {}),
        "target": datasets.Sequence(number) if isinstance(target, list) else number,
    }
    return as_dataset(({"text": row.text, "text_pair": row.pair, "target": target} for row, target in rows), features)
