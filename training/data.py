"""Training data: texts, and labels made into targets."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import datasets

from nopad.model.head import ProblemType
from nopad.runtime.data.fields import LABEL_COLUMNS, TEXT_COLUMNS
from nopad.runtime.data.table import Source
from nopad.runtime.errors import UsageError
from nopad.training.errors import DataError
from nopad.training.sources import Rows, find_splits, read_rows


@dataclass(frozen=True, kw_only=True)
class TrainingData:
    """Rows ready for tokenization: columns `text` and `target`."""

    train: Any  # datasets.Dataset
    evaluation: Any
    labels: tuple[str, ...]
    problem_type: ProblemType
    remarks: tuple[str, ...] = ()  # what was left out of the data, or chosen of several


@dataclass(frozen=True, kw_only=True)
class _Example:
    text: str
    label: Any
    place: str


def load_data(
    source: Source | str,
    evaluation: Source | str | None = None,
    *,
    text_column: str | None = None,
    label_column: str | None = None,
    labels: Sequence[str] | None = None,
    eval_fraction: float = 0.1,
    seed: int = 42,
) -> TrainingData:
    """Read `source` (and `evaluation`, or a split of it, or a held-out fraction) and encode the labels.

    The problem type follows from the labels of the training rows that have a text: integers or strings are classes,
    floats a regression target, lists several labels at once. Raises `DataError`, and `UsageError` for bad `labels`.
    """
    for name in labels or ():
        if not name.strip() or list(labels or ()).count(name) > 1:
            raise UsageError(f"--labels must name each label once, got {','.join(labels or ())!r}")
    parts = find_splits(source)
    rows = read_rows(parts.pop("train" if "train" in parts else next(iter(parts))))
    if evaluation is not None:
        parts = find_splits(evaluation)
    held_out = next((parts[name] for name in ("validation", "test") if name in parts), None)
    if held_out is None and evaluation is not None:
        held_out = next(iter(parts.values()))

    text = rows.column(text_column, TEXT_COLUMNS, "--text-column")
    label = rows.column(label_column, LABEL_COLUMNS, "--label-column")
    examples = _examples(rows, text, label, "training")
    names, problem_type, encode = _label_encoder(rows, examples, label, labels)
    train = _encoded(examples, label, encode)
    if held_out is not None:
        held_rows = read_rows(held_out)
        held_text = held_rows.column(text, (), "--text-column", what="evaluation data")
        held_label = held_rows.column(label, (), "--label-column", what="evaluation data")
        made = _encoded(_examples(held_rows, held_text, held_label, "evaluation"), held_label, encode)
    else:
        count = math.ceil(eval_fraction * len(train)) if 0 < eval_fraction < 1 else 0
        if not 0 < count < len(train):
            raise DataError(
                f"{len(train)} text(s) cannot be divided into some to train on and --eval-fraction {eval_fraction} "
                "to evaluate on; give more, another fraction, or --eval"
            )
        halves = train.train_test_split(test_size=count, seed=seed)
        train, made = halves["train"], halves["test"]
    return TrainingData(train=train, evaluation=made, labels=names, problem_type=problem_type, remarks=rows.remarks)


def _examples(rows: Rows, text: str, label: str, name: str) -> list[_Example]:
    """The rows that have a text; each must have a label, too."""
    examples = []
    for record, place in zip(rows.records, rows.places, strict=True):
        value, answer = rows.text(record, text), record.get(label)
        if not isinstance(value, str) or not value.strip():
            continue
        if answer is None or answer == "":
            raise DataError(f"{place}: column {label!r} has no value; fill it in, or remove the row")
        for item in answer if isinstance(answer, list) else [answer]:
            if not isinstance(item, str | int | float):
                raise DataError(f"{place}: column {label!r}: {answer!r:.80} is not a text, a number or a list of them")
        try:
            value.encode()
        except UnicodeEncodeError:
            raise DataError(f"{place}: column {text!r} holds half a character (a lone surrogate); mend it") from None
        examples.append(_Example(text=value, label=answer, place=place))
    if not examples:
        raise DataError(f"the {name} data has no row with text in column {text!r}")
    return examples


def _encoded(examples: list[_Example], column: str, encode: Callable[[Any], Any]) -> Any:
    targets = []
    for example in examples:
        try:
            targets.append(encode(example.label))
        except (ValueError, OverflowError) as error:
            reason = f"label {example.label!r:.80} {error}"
            raise DataError(f"{example.place}: column {column!r}: {reason}") from None
    return datasets.Dataset.from_dict({"text": [example.text for example in examples], "target": targets})


def _number(value: Any) -> Any:
    """The number that a text spells; anything else as it is."""
    for kind in (int, float):
        with suppress(ValueError):
            if isinstance(value, str) and "_" not in value:  # Python reads 1_0 as 10
                return kind(value)
    return value


def _label_encoder(
    rows: Rows, examples: list[_Example], column: str, given: Sequence[str] | None
) -> tuple[tuple[str, ...], ProblemType, Callable[[Any], Any]]:
    """Names, problem type, and the function that makes a label a target or raises `ValueError` with the reason."""
    names = tuple(given) if given else rows.class_names.get(column, ())
    values = [example.label for example in examples]
    if rows.untyped and all(isinstance(_number(value), int | float) for value in values):
        values = [_number(value) for value in values]
    several = any(isinstance(value, list) for value in values)
    flat = {item for value in values for item in (value if isinstance(value, list) else [value])}
    if not flat:
        raise DataError(f"column {column!r}: every list of labels is empty, so there is nothing to learn")
    numbers = all(isinstance(value, int | float) for value in flat)
    whole = numbers and all(isinstance(value, int) or value.is_integer() for value in flat)

    if numbers and not several and any(isinstance(value, float) for value in values):
        # pandas stores a column of integers as floats where a row has none.
        gaps = any(record.get(column) in (None, "") or record[column] != record[column] for record in rows.records)
        if not (whole and (gaps or len(names) > 1)):
            if len(names) > 1:
                raise DataError(f"column {column!r} holds fractions: one number to learn, not one of --labels")
            return names or (column,), "regression", _finite
    width = len(values[0]) if several and isinstance(values[0], list) else 0
    if width and all(isinstance(value, list) and len(value) == width and set(value) <= {0, 1} for value in values):
        names = names or tuple(f"LABEL_{i}" for i in range(width))
        if len(names) != width:
            raise DataError(f"column {column!r} has lists of {width} zeros and ones, but there are {len(names)} names")

        def ones(hot: Any) -> list[float]:
            if not isinstance(hot, list) or len(hot) != width or not set(hot) <= {0, 1}:
                raise ValueError(f"is not a list of {width} zeros and ones")
            return [float(x) for x in hot]

        return names, "multi_label_classification", ones

    key: Callable[[Any], Any] = _number if whole else str
    if whole:  # bool is an int too: False 0, True 1
        highest, lowest = int(max(flat)), int(min(flat))
        names = names or tuple(f"LABEL_{i}" for i in range(highest + 1))
        if lowest < 0 or highest >= len(names):
            wrong = lowest if lowest < 0 else highest
            raise DataError(f"column {column!r} has label {wrong}, but only {len(names)} names: {', '.join(names)}")
        index: dict[Any, int] = {i: i for i in range(len(names))}
    else:
        found = {str(value) for value in flat}
        names = names or tuple(sorted(found))
        index = {name: i for i, name in enumerate(names)}
        if unknown := found - set(names):
            raise DataError(f"column {column!r} has labels that --labels does not name: {', '.join(sorted(unknown))}")

    def encode(value: Any) -> Any:
        if isinstance(value, list) is not several:
            raise ValueError("is not a list, as others are" if several else "is a list, unlike the training data's")
        found = [index.get(key(item)) for item in (value if several else [value])]
        if None in found:
            raise ValueError(f"is not among {', '.join(names)}")
        return [float(i in found) for i in range(len(names))] if several else found[0]

    return names, "multi_label_classification" if several else "single_label_classification", encode


def _finite(value: Any) -> float:
    number = _number(value)
    if not isinstance(number, int | float):
        raise ValueError("is not a number")
    if not math.isfinite(number):
        raise ValueError("is not finite")
    return float(number)
