"""Entities against the truth: found, missed, taken for another kind, or with other limits. numpy only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nopad.analysis.intervals import Estimate, Values, bootstrap, wilson
from nopad.analysis.scores import LabelScore, score_of
from nopad.analysis.tagged_rows import Span

NONE = "(none)"


@dataclass(frozen=True, kw_only=True)
class TagFigures:
    """How well entities are found: one is right if kind, beginning and end are."""

    f1: Estimate | None  # over all entities; None where there is none
    texts: Estimate  # share of texts whose entities are exactly the true ones
    kinds: tuple[LabelScore, ...]
    names: tuple[str, ...]  # of the matrix: the kinds, and none
    confusion: tuple[tuple[int, ...], ...]  # true entities by the kind of the one that overlaps them most, or none
    limits: int  # right kind, other limits


def tag_figures(truth: Sequence[Sequence[Span]], given: Sequence[Sequence[Span]], kinds: Sequence[str]) -> TagFigures:
    """Both are [texts]. F1 is that of the CoNLL shared tasks, over characters instead of words."""
    counts = np.zeros((3, len(truth), len(kinds)))  # true, given, right
    places = {kind: n for n, kind in enumerate(kinds)}
    matrix = np.zeros((len(kinds) + 1, len(kinds) + 1), dtype=np.int64)
    limits = 0
    for text, (true, got) in enumerate(zip(truth, given, strict=True)):
        for row, spans in zip(counts, (true, got, set(true) & set(got)), strict=True):
            for span in spans:
                row[text, places[span.kind]] += 1
        limits += _count(true, got, places, matrix)
    right = counts[2].sum(axis=1)
    both = counts[:2].sum(axis=(0, 2))

    def f1(weights: Values) -> float:
        return float(2 * (weights @ right) / (weights @ both)) if weights @ both else float("nan")

    return TagFigures(
        f1=bootstrap(f1, len(truth)) if both.any() else None,
        texts=wilson(int(right_texts(truth, given).sum()), len(truth)),
        kinds=tuple(score_of(kind, *(int(each[:, n].sum()) for each in counts)) for n, kind in enumerate(kinds)),
        names=(*kinds, NONE),
        confusion=tuple(tuple(int(cell) for cell in row) for row in matrix),
        limits=limits,
    )


def right_texts(truth: Sequence[Sequence[Span]], given: Sequence[Sequence[Span]]) -> npt.NDArray[np.bool_]:
    """Whether each text has exactly its true entities."""
    return np.array([set(true) == set(got) for true, got in zip(truth, given, strict=True)], dtype=np.bool_)


def _count(true: Sequence[Span], got: Sequence[Span], places: dict[str, int], matrix: npt.NDArray[np.int64]) -> int:
    """Add a text's entities to the matrix; how many have the right kind and other limits."""
    none, limits = len(places), 0
    for span in true:
        best = max(got, key=lambda other: _shared(span, other), default=None)
        if best is None or not _shared(span, best):
            matrix[places[span.kind], none] += 1
            continue
        matrix[places[span.kind], places[best.kind]] += 1
        limits += best.kind == span.kind and best != span
    for span in got:
        if not any(_shared(span, other) for other in true):
            matrix[none, places[span.kind]] += 1
    return limits


def _shared(one: Span, other: Span) -> int:
    """Characters that two spans share."""
    return max(0, min(one.end, other.end) - max(one.start, other.start))
