"""Texts that are in the training data, too, or more than once in the labelled data: exactly or nearly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from nopad.analysis.groups import Measure
from nopad.analysis.intervals import Estimate
from nopad.runtime.data.duplicates import find_duplicates


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two rows with the same text, exactly (but for capitals and blanks) or nearly; labels are None where unknown."""

    line: int
    other_line: int
    exact: bool
    text: str
    other_text: str
    label: str
    other_label: str | None


@dataclass(frozen=True, kw_only=True)
class Overlap:
    """How many rows are found again, and the first of them; the score of these rows and of all others."""

    rows: int
    exact: int
    near: int
    conflicts: int  # of them, with another label there
    pairs: tuple[Pair, ...]
    found: Estimate | None = None
    others: Estimate | None = None


@dataclass(frozen=True, kw_only=True)
class Side:
    """Rows that are looked at: texts, numbers, and labels as they are shown (None: it has none)."""

    texts: Sequence[str]
    lines: Sequence[int]
    labels: Sequence[str | None]


def find_overlap(
    data: Side, train: Side | None, measure: Measure, most: int
) -> tuple[Overlap | None, Overlap, npt.NDArray[np.bool_]]:
    """Rows of `data` that are in `train`, rows of `data` that repeat an earlier one, and which those in `train` are."""
    count = len(data.texts)
    duplicates = find_duplicates([*data.texts, *(train.texts if train else ())])
    partner = np.full(count, -1)  # of each row, a training row with its text
    for roots in (duplicates.near, duplicates.exact):  # an exact one rather than a near one
        first = {int(root): index for index, root in reversed(list(enumerate(roots[count:])))}
        for row in range(count):
            if (other := first.get(int(roots[row]))) is not None:
                partner[row] = other
    inside = duplicates.near[:count]
    again = np.flatnonzero(inside != np.arange(count))
    own = _overlap(data, data, [(int(row), int(inside[row])) for row in again], duplicates.exact, most)
    shared = partner >= 0
    if train is None:
        return None, own, shared
    pairs = [(int(row), int(partner[row])) for row in np.flatnonzero(shared)]
    both = _overlap(data, train, pairs, duplicates.exact, most, offset=count)
    scores = [measure(mask) if mask.any() else None for mask in (shared, ~shared)]
    return replace(both, found=scores[0], others=scores[1]), own, shared


def _overlap(
    data: Side,
    other: Side,
    places: Sequence[tuple[int, int]],
    roots: npt.NDArray[np.int64],
    most: int,
    offset: int = 0,
) -> Overlap:
    """The pairs at `places`, those with different labels first."""
    pairs = [
        Pair(
            line=data.lines[row],
            other_line=other.lines[partner],
            exact=bool(roots[row] == roots[partner + offset]),
            text=data.texts[row],
            other_text=other.texts[partner],
            label=str(data.labels[row]),
            other_label=other.labels[partner],
        )
        for row, partner in places
    ]
    conflicts = [pair for pair in pairs if pair.other_label not in (None, pair.label)]
    exact = sum(pair.exact for pair in pairs)
    return Overlap(
        rows=len(pairs),
        exact=exact,
        near=len(pairs) - exact,
        conflicts=len(conflicts),
        pairs=tuple(sorted(pairs, key=lambda pair: pair.other_label in (None, pair.label))[:most]),
    )
