"""What is trained on and what is evaluated: parts of the data that its source names, or a fraction held out."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from nopad.runtime.errors import UsageError
from nopad.training.bad_rows import BadRows, OnDuplicate
from nopad.training.errors import DataError
from nopad.training.repeats import LabelledText, find_repeats
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
    rows = read_rows(parts.pop("train" if "train" in parts else next(iter(parts))), wanted=wanted, bad_rows=training)
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
    groups: Sequence[Any] | None = None,
    one_group: str = ONE_GROUP,
    duplicates: OnDuplicate | None,
    conflicts: bool = False,
    near: bool = True,
) -> tuple[list[T], list[T], tuple[str, ...]]:
    """The rows to train on, those to evaluate on (`held`, else a fraction of `rows`), and remarks on repeats.

    With `classes` of the rows, each has its share in both halves, and the first of each is trained on. With `groups`,
    no group is in both halves, and the fraction is met as well as whole groups can; `one_group` is the error where all
    rows are of one. Texts that repeat are looked for
    unless `duplicates` is None, nearly the same ones if `near`, and those whose labels differ if `conflicts`. Raises
    `DataError`.
    """
    if held is None:
        out = held_rows(len(rows), eval_fraction, seed, classes=classes, groups=groups, one_group=one_group)
        rows, held = (
            [row for row, is_held in zip(rows, out, strict=True) if is_held == half] for half in (False, True)
        )
    train: list[T] = list(rows)
    remarks: tuple[str, ...] = ()
    if duplicates is not None:
        texts, held_texts = (list(map(as_text, half)) for half in (rows, held))
        found = find_repeats(texts, held_texts, duplicates, classes=conflicts, near=near)
        remarks = found.remarks
        if duplicates == "drop":
            train = [row for row, repeated in zip(rows, found.repeated, strict=True) if not repeated]
    if not train or not held:
        raise DataError(f"no row is left to {'evaluate' if train else 'train'} on: {'; '.join(remarks)}")
    return train, list(held), remarks


def held_rows(
    rows: int,
    eval_fraction: float,
    seed: int,
    *,
    classes: npt.NDArray[np.int64] | None = None,
    groups: Sequence[Any] | None = None,
    one_group: str = ONE_GROUP,
) -> npt.NDArray[np.bool_]:
    """Which rows `divide` holds out, bool [rows]. Raises `DataError`."""
    count = rows_to_hold_out(rows, eval_fraction)
    draw = np.random.default_rng(seed)
    held = np.zeros(rows, dtype=bool)
    if groups is not None:
        held[_whole_groups(groups, count, draw, one_group)] = True
        return held
    shuffled = draw.permutation(rows)
    if classes is not None:
        shuffled = shuffled[np.argsort(classes[shuffled], kind="stable")]
        first = np.r_[True, np.diff(classes[shuffled]) != 0]
        shuffled = shuffled[~first] if count <= rows - first.sum() else shuffled
    # Evenly spaced among the rows by class: every class gives its share.
    held[shuffled[((np.arange(count) + 0.5) * len(shuffled) / count).astype(np.int64)]] = True
    return held


def _whole_groups(groups: Sequence[Any], count: int, draw: np.random.Generator, one_group: str) -> list[int]:
    """Rows of groups in random order, as many as fit in `count`; of the smallest group if none does."""
    members: dict[str, list[int]] = {}
    for row, group in enumerate(groups):
        members.setdefault(str(group), []).append(row)
    if len(members) < 2:
        raise DataError(one_group)
    names = sorted(members)
    held: list[int] = []
    for place in draw.permutation(len(names)):
        if len(held) + len(members[names[place]]) <= count:
            held += members[names[place]]
    return held or min(members.values(), key=len)


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
