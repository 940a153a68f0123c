"""What is trained on and what is evaluated: parts of the data that its source names, or a fraction held out."""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from nopad.runtime.data.labels import spelled_number
from nopad.runtime.errors import UsageError
from nopad.training.bad_rows import BadRows, OnDuplicate
from nopad.training.errors import DataError
from nopad.training.repeats import LabelledText, find_repeats
from nopad.training.rows_on_disk import chosen
from nopad.training.sources import Rows, Sources, find_splits, read_rows

T = TypeVar("T")
ONE_GROUP = "--split-group: all rows are of one group, so none can be held out; give --eval"


def read_parts(
    source: Sources, evaluation: Sources | None, *, wanted: Sequence[str], bad_rows: tuple[BadRows, BadRows]
) -> tuple[Rows, Rows | None]:
    """The rows to train on, and those to evaluate on: of `evaluation`, else of a split of `source`, else None.

    `wanted` are the names that the text's column may have, `bad_rows` what becomes of rows that cannot be read: of
    those to train on, and of those to evaluate on. Raises `DataError`.
    """
    training, held = bad_rows
    parts = find_splits(source)
    name = "train" if "train" in parts else next(iter(parts))
    several = ", ".join(parts) if len(parts) > 1 else ""
    rows = read_rows(parts.pop(name), wanted=wanted, bad_rows=training)
    if several and name != "train":
        remark = f"the data has no split 'train', but {several}: {name!r} is trained on"
        rows = replace(rows, remarks=(remark, *rows.remarks))
    held_out = _part_to_evaluate(parts, evaluation)
    return rows, None if held_out is None else read_rows(held_out, wanted=wanted, bad_rows=held)


def group_column(rows: Rows, held: Rows | None, name: str | None) -> str | None:
    """The column that `--split-group` names. Raises `DataError`, and `UsageError` where nothing is held out."""
    if name is None:
        return None
    if held is not None:
        raise UsageError("--split-group says how to hold rows out, but there is evaluation data; leave it out")
    return rows.column(name, (), "--split-group")


def divide(
    rows: Sequence[T],
    held: Sequence[T] | None,
    *,
    as_text: Callable[[T], LabelledText],
    eval_fraction: float,
    seed: int,
    classes: npt.NDArray[np.int64] | None = None,
    groups: Iterable[Any] | None = None,
    one_group: str = ONE_GROUP,
    duplicates: OnDuplicate | None,
    conflicts: bool = False,
    near: bool = True,
) -> tuple[Sequence[T], Sequence[T], tuple[str, ...]]:
    """The rows to train on, those to evaluate on (`held`, else a fraction of `rows`), and remarks on repeats.

    With `classes` of the rows, each has its share in both halves, and the first of each is trained on. With `groups`,
    no group is in both halves, and the fraction is met as well as whole groups can; `one_group` is the error where all
    rows are of one. Texts that repeat are looked for
    unless `duplicates` is None, nearly the same ones if `near`, and those whose labels differ if `conflicts`. Raises
    `DataError`.
    """
    if held is None:
        out = held_rows(len(rows), eval_fraction, seed, classes=classes, groups=groups, one_group=one_group)
        rows, held = (chosen(rows, np.flatnonzero(out == half)) for half in (False, True))
    remarks: tuple[str, ...] = ()
    if duplicates is not None:
        found = find_repeats(rows, held, duplicates, as_text=as_text, classes=conflicts, near=near)
        remarks = found.remarks
        if duplicates == "drop":
            rows = chosen(rows, np.flatnonzero(~found.repeated))
    if not rows or not held:
        raise DataError(f"no row is left to {'evaluate' if rows else 'train'} on: {'; '.join(remarks)}")
    return rows, held, remarks


def held_rows(
    rows: int,
    eval_fraction: float,
    seed: int,
    *,
    classes: npt.NDArray[np.int64] | None = None,
    groups: Iterable[Any] | None = None,
    one_group: str = ONE_GROUP,
) -> npt.NDArray[np.bool_]:
    """Which rows `divide` holds out, bool [rows]. Raises `DataError`."""
    count = rows_to_hold_out(rows, eval_fraction)
    draw = np.random.default_rng(seed)
    held = np.zeros(rows, dtype=bool)
    if groups is not None:
        return _whole_groups(groups, count, draw, one_group)
    shuffled = draw.permutation(rows)
    if classes is not None:
        shuffled = shuffled[np.argsort(classes[shuffled], kind="stable")]
        first = np.r_[True, np.diff(classes[shuffled]) != 0]
        shuffled = shuffled[~first] if count <= rows - first.sum() else shuffled
    # Evenly spaced among the rows by class: every class gives its share.
    held[shuffled[((np.arange(count) + 0.5) * len(shuffled) / count).astype(np.int64)]] = True
    return held


def _whole_groups(
    groups: Iterable[Any], count: int, draw: np.random.Generator, one_group: str
) -> npt.NDArray[np.bool_]:
    """Which rows are of groups in random order, as many as fit in `count`; of the smallest group if none does."""
    numbers: dict[str, int] = {}
    number_of = np.array(array("q", (numbers.setdefault(_name_of(group), len(numbers)) for group in groups)))
    if len(numbers) < 2:
        raise DataError(one_group)
    sizes = np.bincount(number_of)
    names = sorted(numbers)
    held = np.zeros(len(names), dtype=bool)
    rows = 0
    for place in draw.permutation(len(names)):
        number = numbers[names[place]]
        if rows + sizes[number] <= count:
            held[number] = True
            rows += sizes[number]
    if not rows:
        held[sizes.argmin()] = True
    return held[number_of]


def _name_of(group: Any) -> str:
    """The same for 7, 7.0 and "7.0": files of one data set may write numbers differently."""
    number = spelled_number(group)
    whole = isinstance(number, int) or (number is not None and number.is_integer())
    return str(int(number)) if number is not None and whole else str(group)


def rows_to_hold_out(rows: int, eval_fraction: float) -> int:
    """How many of the rows that fraction is, at least one. Raises `DataError` if nothing would be left to train on."""
    count = math.ceil(eval_fraction * rows) if 0 < eval_fraction < 1 else 0
    if not 0 < count < rows:
        raise DataError(
            f"{rows} text(s) cannot be divided into some to train on and --eval-fraction {eval_fraction} "
            "to evaluate on; give more, another fraction, or --eval"
        )
    return count


def _part_to_evaluate(parts: Mapping[str, Any], evaluation: Sources | None) -> Any:
    if evaluation is not None:
        parts = find_splits(evaluation)
    split = next((parts[name] for name in ("validation", "test") if name in parts), None)
    return next(iter(parts.values())) if split is None and evaluation is not None else split
