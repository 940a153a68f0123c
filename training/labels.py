"""What a column of labels is: classes, several labels at once or a number to learn; and the target of each label."""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from nopad.model.head import ProblemType
from nopad.runtime.data.labels import is_hot, label_finder, listed, spelled_number, zero_or_one
from nopad.training.errors import DataError

SINGLE: ProblemType = "single_label_classification"
MULTI: ProblemType = "multi_label_classification"
REGRESSION: ProblemType = "regression"

_FEW, _MANY = 10, 20  # this few different floats may be classes, this many integers numbers to learn
_UNEVEN = 10  # times as many rows of a class as of another are worth a remark
_MOST = 0.9  # of the lists are of zeros and ones: all are
_MOST_CELLS = 10**9  # of multi-label targets, 8 bytes each
# What programs write for a value that is missing (pandas, JSON, databases, Excel).
_NO_VALUE = {"nan", "NaN", "None", "null", "NULL", "<NA>", "NaT", "N/A", "#N/A", "\\N"}
_DECIMAL_COMMA = re.compile(r"\s*[+-]?[0-9]+,[0-9]+\s*")


@dataclass(frozen=True, kw_only=True)
class LabelColumn:
    """What the labels of the training rows are."""

    problem_type: ProblemType
    names: tuple[str, ...]
    encode: Callable[[Any], Any]  # label -> class index, zeros and ones, or number; `ValueError` says why not
    remarks: tuple[str, ...] = ()
    ordered: bool = False  # whether the classes have an order: as numbers, or as the user has named them


def understand_labels(
    values: Sequence[Any],
    column: str,
    *,
    names: Sequence[str] = (),
    problem_type: ProblemType | None = None,
    gaps: bool = False,
) -> LabelColumn:
    """Read `values`, the label of each training row: text, number, boolean, or a list of these.

    A text that spells a number is that number, so every kind of file gives the same result. `names` are the classes
    where they are known beforehand, `problem_type` is the user's choice; `gaps`: the column has empty cells, for which
    pandas stores whole numbers as floats. Raises `DataError`.
    """
    if any(isinstance(value, list) for value in values):
        if problem_type not in (None, MULTI):
            raise DataError(f"column {column!r} has lists of labels: that is {MULTI}, not {problem_type}")
        return _lists(values, column, tuple(names), checked=problem_type is None)
    numbers = _numbers(values)
    remarks: tuple[str, ...] = ()
    if problem_type is not None:
        chosen = problem_type
    elif len(names) > 1:
        chosen = SINGLE
    elif numbers is None:
        chosen, remarks = SINGLE, _almost_numbers(values, column)
    else:
        chosen, remarks = _class_or_number(numbers, column, gaps)
    if chosen == REGRESSION:
        if len(names) > 1:
            raise DataError(f"column {column!r} is one number to learn, not one of {len(names)} --labels")
        return LabelColumn(
            problem_type=REGRESSION, names=tuple(names) or (column,), encode=finite_number, remarks=remarks
        )
    ordered = bool(names) or numbers is not None  # else the names are in the order of the alphabet, which says nothing
    names = _class_names(values, column, tuple(names), checked=problem_type is None)
    if len(names) < 2:
        raise DataError(f"column {column!r} has one class only, {values[0]!r}: there is nothing to tell apart")
    return LabelColumn(
        problem_type=SINGLE, names=names, encode=_index_of(names, ordered), remarks=remarks, ordered=ordered
    )


def zeros_and_ones(columns: Sequence[str], names: Sequence[str]) -> LabelColumn:
    """One column of zeros and ones for each label: several labels at once. Raises `DataError`."""
    if names and len(names) != len(columns):
        raise DataError(f"{len(columns)} label columns ({listed(columns)}), but --labels has {len(names)} names")
    return LabelColumn(
        problem_type=MULTI,
        names=tuple(names or columns),
        encode=lambda label: [zero_or_one(cell) for cell in (label if isinstance(label, list) else [label])],
    )


def describe(column: LabelColumn, targets: npt.NDArray[Any]) -> str:
    """In one line: the classes and how many rows each has (in brackets), or the number to learn and its range."""
    if column.problem_type == REGRESSION:
        return f"a number to learn, {column.names[0]}: {targets.min():.6g} to {targets.max():.6g}"
    counts = _rows_of_classes(column, targets)
    kind = "classes" if column.problem_type == SINGLE else f"label{'s' if len(counts) > 1 else ''}, several at once"
    return f"{len(counts)} {kind}: {listed([f'{name!r} ({count:,})' for name, count in counts.items()])}"


def remarks_on_classes(column: LabelColumn, targets: npt.NDArray[Any]) -> list[str]:
    """Remarks on possible mistakes: names that hardly differ, classes with one row or none."""
    if column.problem_type == REGRESSION:
        return []
    counts = _rows_of_classes(column, targets)
    alike: dict[str, list[str]] = {}
    for name in column.names:
        alike.setdefault(_folded_name(name), []).append(name)
    remarks = []
    for names in alike.values():
        if len(names) > 1:
            each = " and ".join(f"{name!r} ({counts[name]:,} rows)" for name in names)
            remarks.append(
                f"labels {each} differ only in blanks, capitals, leading zeros or how letters are encoded: taken as "
                f"{len(names)} classes; if they are one, make them equal in the file"
            )
    blanks = [repr(name) for name in column.names if name != name.strip() and len(alike[_folded_name(name)]) == 1]
    if blanks:
        remarks.append(f"labels begin or end with a blank, which is part of their names: {listed(blanks)}")
    if missing := [f"{name!r} ({counts[name]:,} rows)" for name in column.names if name in _NO_VALUE]:
        remarks.append(
            f"{listed(missing)} may stand for a missing label, and is taken as a class: remove such rows if so"
        )
    joined = [name for name in column.names if _parts(name) & set(column.names) or re.fullmatch(r"\[.*\]", name)]
    if joined:
        remarks.append(
            f"labels look like several in one cell ({listed([repr(name) for name in joined], 3)}): each is taken as "
            "one class; several labels of a text are a list (JSONL, Parquet), or a column of zeros and ones for each "
            "label (--label-column first,second)"
        )
    common, rare = max(counts, key=counts.__getitem__), min(counts, key=lambda name: counts[name] or len(targets))
    if column.problem_type == SINGLE and counts[common] >= _UNEVEN * counts[rare] > _UNEVEN:
        remarks.append(
            f"classes are uneven: {counts[common]:,} rows of {common!r}, {counts[rare]:,} of {rare!r}; accuracy says "
            "little of such data, F1 more"
        )
    for number, words in enumerate(("no row", "a single row")):
        if few := [repr(name) for name, count in counts.items() if count == number]:
            remarks.append(f"{words} of the training data for {listed(few)}: there is little to learn from")
    return remarks


def _parts(name: str) -> set[str]:
    parts = re.split(r"[|;,]", name)
    return {part.strip() for part in parts} if len(parts) > 1 else set()


def _rows_of_classes(column: LabelColumn, targets: npt.NDArray[Any]) -> dict[str, int]:
    single = column.problem_type == SINGLE
    counts = np.bincount(targets, minlength=len(column.names)) if single else targets.sum(axis=0)
    return {name: int(count) for name, count in zip(column.names, counts, strict=True)}


def _folded_name(name: str) -> str:
    """A name without the differences that people and programs make unnoticed."""
    seen = "".join(letter for letter in name if unicodedata.category(letter) != "Cf")  # no zero-width blanks
    folded = " ".join(unicodedata.normalize("NFKC", seen).split()).casefold()
    return re.sub(r"^0+(?=[0-9])", "", folded)


def finite_number(value: Any) -> float:
    """A regression target. Raises `ValueError` with the reason, `OverflowError` over float64."""
    number = spelled_number(value)
    if number is None:
        comma = isinstance(value, str) and _DECIMAL_COMMA.fullmatch(value)
        raise ValueError("has a decimal comma; write it with a point" if comma else "is not a number")
    if not math.isfinite(number):
        raise ValueError("is not finite")
    return float(number)


def _numbers(values: Sequence[Any]) -> list[int | float] | None:
    """All values as numbers, or None if they are something else."""
    numbers = [number for value in values if (number := spelled_number(value)) is not None]
    return numbers if len(numbers) == len(values) and any(map(_is_finite, numbers)) else None


def _is_finite(number: int | float) -> bool:
    return isinstance(number, int) or math.isfinite(number)


def _is_whole(number: int | float) -> bool:
    return isinstance(number, int) or number.is_integer()


def _class_or_number(numbers: Sequence[int | float], column: str, gaps: bool) -> tuple[ProblemType, tuple[str, ...]]:
    """Whether numbers are classes or one number to learn, and the remark that says how to choose the other."""
    known = len(numbers)
    numbers = list(filter(_is_finite, numbers))
    gaps |= len(numbers) < known  # a cell of "nan" is one that pandas had no value for
    different = sorted(set(numbers))
    floats = any(isinstance(number, float) for number in numbers)
    if floats and not (gaps and all(map(_is_whole, numbers))):
        few = len(different) <= _FEW and len(different) < len(numbers)
        remark = (
            f"column {column!r} has {len(different)} different values, written as floats ({listed(different)}): taken "
            f"as a number to learn (regression); if they are classes, say --problem-type {SINGLE} or name them "
            "with --labels"
        )
        return REGRESSION, (remark,) if few else ()
    dense = len(different) >= _MANY and 2 * len(different) > different[-1] - different[0]
    remark = (
        f"column {column!r} has {len(different)} different whole numbers from {different[0]} to {different[-1]}: taken "
        "as classes; if it is a number to learn, say --problem-type regression"
    )
    return SINGLE, (remark,) if dense else ()


def _almost_numbers(values: Sequence[Any], column: str) -> tuple[str, ...]:
    """The remark on a few texts among numbers. Raises `DataError` where these are fractions, so surely no classes."""
    texts = [value for value in values if spelled_number(value) is None]
    commas = [text for text in texts if isinstance(text, str) and _DECIMAL_COMMA.fullmatch(text)]
    if commas and len(commas) == len(texts):
        raise DataError(
            f"column {column!r} has numbers with a decimal comma ({commas[0]!r}): write them with a point, or say "
            f"--problem-type {SINGLE} if they are names of classes"
        )
    words = [text for text in texts if not (isinstance(text, str) and text.strip().lstrip("+-").isdecimal())]
    numbers = [number for value in values if (number := spelled_number(value)) is not None]
    names = _different(words)
    if names and numbers and set(numbers) <= set(range(len(names) + 1)):
        return (
            f"column {column!r} has numbers ({listed(sorted(set(numbers)))}) and names ({listed(names)}): each is a "
            "class of its own; if the numbers stand for the names, write the names",
        )
    if not words or len(numbers) < 9 * len(texts):
        return ()
    summary = f"column {column!r} has {len(numbers)} numbers and {len(words)} other value(s) ({listed(names)})"
    if not all(_is_finite(number) and _is_whole(number) for number in numbers):
        raise DataError(
            f"{summary}: mend these or remove their rows, or say --problem-type {SINGLE} if all are names of classes"
        )
    return (f"{summary}: taken as classes, these too",)


def _different(values: Sequence[Any]) -> list[str]:
    return sorted({str(value) for value in values})


def _class_names(values: Sequence[Any], column: str, known: tuple[str, ...], *, checked: bool) -> tuple[str, ...]:
    """`known`, if they cover all values, else the names that follow from them. Raises `DataError`."""
    if known:
        find = label_finder(known)
        unknown = [value for value in values if find(value) is None]
        wrong = _numbers(unknown) or []
        if not all(map(_is_whole, wrong)):
            raise DataError(f"column {column!r} holds fractions: one number to learn, not one of {listed(known)}")
        if wrong:
            digits = "" if find(0) == 0 else " (which are numbers themselves, so a number must be one of them)"
            raise DataError(
                f"column {column!r} has label {unknown[0]}, but only {len(known)} names: {listed(known)}{digits}"
            )
        if unknown:
            others = listed(_different(unknown))
            raise DataError(
                f"column {column!r} has labels that --labels does not name: {others}; it has {listed(known)}"
            )
        return known
    numbers = _numbers(values)
    if numbers is None:
        names = _different(values)
    else:
        different = sorted(filter(_is_finite, set(numbers)))
        names = [str(int(number)) if _is_whole(number) else repr(number) for number in different]
        if different == list(range(len(different))):
            names = [f"LABEL_{index}" for index in range(len(different))]
    if checked and len(names) > _FEW and 2 * len(names) > len(values):
        learn = "" if numbers is None else "if it is a number to learn, say --problem-type regression; "
        raise DataError(
            f"column {column!r} has {len(names)} different values in {len(values)} labels ({listed(names, 3)}), too "
            f"many to be classes: {learn}if it is not the label, name the column with --label-column; if they are "
            f"classes, say --problem-type {SINGLE} ({MULTI} for lists)"
        )
    return tuple(names)


def _index_of(names: Sequence[str], places: bool) -> Callable[[Any], int]:
    find = label_finder(names, places=places)

    def encode(value: Any) -> int:
        if isinstance(value, list):
            raise ValueError("is a list, unlike the training data's")
        if (index := find(value)) is None:
            number = spelled_number(value)
            if places and isinstance(number, float) and not math.isfinite(number):
                raise ValueError("is not finite")
            placed = " (a number is the place of a name only where --labels names them in order)"
            hint = placed if isinstance(number, int) and not places else ""
            raise ValueError(f"is not among {listed(names)}{hint}")
        return index

    return encode


def _lists(values: Sequence[Any], column: str, names: tuple[str, ...], *, checked: bool) -> LabelColumn:
    """Several labels at once: lists of zeros and ones, all of one width, or of labels."""
    flat = [item for value in values for item in (value if isinstance(value, list) else [value])]
    if not flat:
        raise DataError(f"column {column!r}: every list of labels is empty, so there is nothing to learn")
    if width := _width_of_hot(values):
        names = names or tuple(f"LABEL_{i}" for i in range(width))
        if len(names) != width:
            raise DataError(f"column {column!r} has lists of {width} zeros and ones, but there are {len(names)} names")
        return LabelColumn(problem_type=MULTI, names=names, encode=_hot_of(width))
    numbers = _numbers(flat)
    if numbers is not None and not all(map(_is_whole, numbers)):
        raise DataError(f"column {column!r} has lists of fractions; labels are names, whole numbers, or zeros and ones")
    ordered = bool(names) or numbers is not None
    names = _class_names(flat, column, names, checked=checked)
    if len(values) * len(names) > _MOST_CELLS:
        raise DataError(
            f"column {column!r}: {len(names):,} labels for each of {len(values):,} texts are more than {_MOST_CELLS:,} "
            "zeros and ones; leave out rare labels, or train on fewer rows"
        )
    index = _index_of(names, ordered)

    def encode(value: Any) -> list[float]:
        if not isinstance(value, list):
            raise ValueError("is not a list, as others are")
        indices = {index(item) for item in value}
        return [1.0 if i in indices else 0.0 for i in range(len(names))]

    return LabelColumn(problem_type=MULTI, names=names, encode=encode)


def _width_of_hot(values: Sequence[Any]) -> int:
    """How many zeros and ones each list has; 0 if they are lists of labels.

    A few other rows do not change what the lists are where some repeat a digit, as no list of labels does.
    """
    lists = [value for value in values if isinstance(value, list)]
    width = Counter(map(len, lists)).most_common(1)[0][0]
    hot = [value for value in lists if is_hot(value, width)]
    most, digits = len(hot) >= _MOST * len(values), all(is_hot(value, len(value)) for value in lists)
    repeated = any(len(set(value)) < width for value in hot)
    return width if (most and len(hot) == len(lists)) or (repeated and (most or digits)) else 0


def _hot_of(width: int) -> Callable[[Any], list[float]]:
    def encode(value: Any) -> list[float]:
        if not is_hot(value, width):
            raise ValueError(f"is not a list of {width} zeros and ones")
        return [zero_or_one(item) for item in value]

    return encode
