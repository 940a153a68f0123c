"""Two models on the same rows: what changed, which way, and whether it can be chance."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from nopad.analysis.answers import Answers, IntArray, Rows
from nopad.analysis.groups import Mask
from nopad.analysis.intervals import Estimate, Values, bootstrap, mcnemar, wilson
from nopad.analysis.mistakes import named
from nopad.analysis.scores import confusion_matrix
from nopad.runtime.types import Text


@dataclass(frozen=True, kw_only=True)
class Change:
    """A row that the two answer differently. `label` is the true label or, of several, the one that changed most.

    Its probabilities are `first_score` and `second_score`; of numbers, the answers.
    """

    line: int
    text: Text
    truth: str
    first: str
    second: str
    label: str = ""
    first_score: float | None = None  # of taggers None
    second_score: float | None = None


@dataclass(frozen=True, kw_only=True)
class Changes:
    """Rows that changed in one way: all their numbers, and the first of them, the largest change first."""

    rows: int
    lines: tuple[int, ...]
    shown: tuple[Change, ...]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The second model beside the first. Of numbers, what is about right and wrong is None."""

    difference: Estimate  # of the accuracies, second less first; of the mean absolute errors
    agreement: Estimate | None = None  # share of rows with the same labels
    both_right: int | None = None
    both_wrong: int | None = None
    p_value: float | None = None  # McNemar's exact test
    answers: tuple[tuple[int, ...], ...] | None = None  # rows that the first gave label i and the second label j
    worse: Changes | None = None  # right, then wrong
    better: Changes | None = None  # wrong, then right
    other: Changes  # wrong, then wrong in another way; of numbers, the largest differences


def compared(
    right: Sequence[Mask],
    same: Mask,
    changes: Callable[[Mask], Changes],
    *,
    answers: tuple[tuple[int, ...], ...] | None = None,
) -> Comparison:
    """From the rows that each model gets right, [rows] both, and those that both answer the same."""
    gained = right[1].astype(np.float64) - right[0]
    worse, better = changes(right[0] & ~right[1]), changes(~right[0] & right[1])
    return Comparison(
        difference=bootstrap(lambda counts: float(counts @ gained / counts.sum()), len(gained)),
        agreement=wilson(int(same.sum()), len(same)),
        both_right=int((right[0] & right[1]).sum()),
        both_wrong=int((~right[0] & ~right[1]).sum()),
        p_value=mcnemar(worse.rows, better.rows),
        answers=answers,
        worse=worse,
        better=better,
        other=changes(~right[0] & ~right[1] & ~same),
    )


def changes_of(
    lines: Sequence[int], order: Sequence[int] | IntArray, change: Callable[[int], Change], most: int
) -> Changes:
    """The rows `order`, the largest change first, of which `change` shows the first `most`; `lines` of all rows."""
    return Changes(
        rows=len(order),
        lines=tuple(sorted(lines[row] for row in order)),
        shown=tuple(change(int(row)) for row in order[:most]),
    )


def compare(rows: Rows, first: Answers, second: Answers, most: int) -> Comparison:
    """What the second model answers differently from the first."""
    if not first.head.has_labels:
        return _compare_numbers(rows, first, second, most)
    one, two = (answers.head.decide(answers.logits) for answers in (first, second))
    right = [(decided == rows.targets).all(axis=1) for decided in (one, two)]

    def changes(mask: Mask) -> Changes:
        return _changes(rows, (first, second), (one, two), np.flatnonzero(mask), most)

    answers = None if first.head.multi_label else confusion_matrix(one, two)
    return compared(right, (one == two).all(axis=1), changes, answers=answers)


def _changes(rows: Rows, answers: Sequence[Answers], decided: Sequence[Values], places: IntArray, most: int) -> Changes:
    head = answers[0].head
    scores = [each.scores for each in answers]
    moved = np.abs(scores[1] - scores[0])
    if head.multi_label:
        label = np.where(decided[0] != decided[1], moved, -1.0).argmax(axis=1)
    else:
        label = rows.targets.argmax(axis=1)
    order = sorted(map(int, places), key=lambda row: -moved[row, label[row]])

    def change(row: int) -> Change:
        return Change(
            line=rows.lines[row],
            text=rows.inputs[row],
            truth=named(rows.targets[row], head.labels),
            first=named(decided[0][row], head.labels),
            second=named(decided[1][row], head.labels),
            label=head.labels[label[row]],
            first_score=float(scores[0][row, label[row]]),
            second_score=float(scores[1][row, label[row]]),
        )

    return changes_of(rows.lines, order, change, most)


def _compare_numbers(rows: Rows, first: Answers, second: Answers, most: int) -> Comparison:
    one, two = first.scores, second.scores
    off = [np.abs(values - rows.targets).mean(axis=1) for values in (one, two)]
    gained = off[1] - off[0]
    moved = np.abs(two - one)
    label, order = moved.argmax(axis=1), np.argsort(-moved.max(axis=1), kind="stable")
    order = order[moved.max(axis=1)[order] > 0]

    def change(row: int) -> Change:
        return Change(
            line=rows.lines[row],
            text=rows.inputs[row],
            truth=f"{rows.targets[row, label[row]]:g}",
            first=f"{one[row, label[row]]:.4g}",
            second=f"{two[row, label[row]]:.4g}",
            label=first.head.labels[label[row]],
            first_score=float(one[row, label[row]]),
            second_score=float(two[row, label[row]]),
        )

    return Comparison(
        difference=bootstrap(lambda counts: float(counts @ gained / counts.sum()), len(gained)),
        other=changes_of(rows.lines, order, change, most),
    )
