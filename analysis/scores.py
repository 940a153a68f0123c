"""Decisions against the truth: how often each label is right, which labels are taken for which. numpy only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nopad.analysis.intervals import Estimate, Values, bootstrap

Decided = npt.NDArray[np.float64]  # zeros and ones, [rows, num_labels]
_MOST_CELLS = 5_000_000  # rows x labels, beyond which resampling takes minutes


@dataclass(frozen=True, kw_only=True)
class LabelScore:
    """One label: rows that have it, rows that got it, and how these agree; None where there is nothing to divide by."""

    label: str
    rows: int
    given: int
    right: int
    precision: float | None
    recall: float | None
    f1: float | None


@dataclass(frozen=True, kw_only=True)
class Confusion:
    """Rows of one label that got another."""

    label: str
    given: str
    rows: int
    share: float  # of the label's rows


def label_scores(truth: Decided, given: Decided, names: Sequence[str]) -> tuple[LabelScore, ...]:
    """Precision, recall and F1 of each label."""
    return tuple(
        score_of(name, int(has.sum()), int(got.sum()), int((has * got).sum()))
        for name, has, got in zip(names, truth.T, given.T, strict=True)
    )


def score_of(label: str, rows: int, given: int, right: int) -> LabelScore:
    """The score of a label that so many rows have, so many got, and so many of these rightly."""
    return LabelScore(
        label=label,
        rows=rows,
        given=given,
        right=right,
        precision=right / given if given else None,
        recall=right / rows if rows else None,
        f1=2 * right / (rows + given) if rows + given else None,
    )


def macro_f1(truth: Decided, given: Decided) -> Estimate | None:
    """The mean of the labels' F1, without labels that are neither there nor given; None for too many cells."""
    if truth.size > _MOST_CELLS:
        return None
    hits, either = truth * given, truth + given

    def figure(counts: Values) -> float:
        above, below = 2 * (counts @ hits), counts @ either
        there = below > 0
        return float((above[there] / below[there]).mean()) if there.any() else float("nan")

    return bootstrap(figure, len(truth)) if either.any() else None


def confusion_matrix(truth: Decided, given: Decided) -> tuple[tuple[int, ...], ...]:
    """Rows of label i that got label j, where each has exactly one: [num_labels][num_labels]."""
    return tuple(tuple(int(count) for count in row) for row in truth.T @ given)


def confusions(matrix: Sequence[Sequence[int]], names: Sequence[str], most: int) -> tuple[Confusion, ...]:
    """The pairs of labels that are most often taken for each other."""
    pairs = [
        Confusion(label=names[i], given=names[j], rows=count, share=count / sum(row))
        for i, row in enumerate(matrix)
        for j, count in enumerate(row)
        if i != j and count
    ]
    return tuple(sorted(pairs, key=lambda pair: -pair.rows)[:most])
