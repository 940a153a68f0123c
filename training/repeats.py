"""What repeated texts mean for a data set: rows that repeat others, are in both halves, or contradict each other."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from nopad.runtime.data.duplicates import IntArray, find_duplicates
from nopad.training.bad_rows import OnDuplicate
from nopad.training.rows_on_disk import Lazily

T = TypeVar("T")

_SHOWN = 3
BETWEEN = "\n\0\n"  # the texts of a row, which are compared but for blanks: "a", "b c" is not "a b", "c"


@dataclass(frozen=True, kw_only=True)
class LabelledText:
    """A text with its label as messages show it, and its place."""

    text: str
    label: Any
    place: str
    target: Any = None  # what the label means: 1 and "1" may be one class


@dataclass(frozen=True, kw_only=True)
class Repeats:
    """Which training rows are not the first with their text, or stand in the evaluation data; and what to say."""

    repeated: npt.NDArray[np.bool_]  # [training rows]
    remarks: tuple[str, ...]


def find_repeats(
    train: Sequence[T],
    evaluation: Sequence[T],
    choice: OnDuplicate,
    *,
    as_text: Callable[[T], LabelledText],
    classes: bool,
    near: bool,
) -> Repeats:
    """Look for texts that repeat, exactly or (`near`) nearly. `classes`: equal texts should have equal labels."""
    count = len(train)
    rows = Lazily(
        lambda index: as_text(train[index] if index < count else evaluation[index - count]), count + len(evaluation)
    )
    found = find_duplicates(Lazily(lambda index: rows[index].text, len(rows)), near=near)
    exact, groups = found.exact, found.near
    later = groups[:count] != np.arange(count)
    partner = np.full(count, -1)  # of each training row, an evaluation row with its text
    for roots in (groups, exact) if evaluation else ():  # an exact one rather than a near one
        there, first = np.unique(roots[count:], return_index=True)
        place = np.minimum(np.searchsorted(there, roots[:count]), len(there) - 1)
        partner = np.where(there[place] == roots[:count], count + first[place], partner)
    shared = partner >= 0
    done = "left out" if choice == "drop" else "kept (--duplicates drop leaves them out)"
    remarks = []
    for rows_found, partners, what in (
        (np.flatnonzero(later), groups, f"of {count:,} rows of the training data repeat the text of an earlier one"),
        (np.flatnonzero(shared), partner, "rows of the training data have a text of the evaluation data"),
    ):
        if len(rows_found):
            alike, shown = _how_alike(exact, rows_found, partners), _shown(rows_found, partners, rows)
            remarks.append(f"{len(rows_found):,} {what}, {alike}: {shown}; {done}")
    if classes:
        remarks += _conflicts(rows, exact)
    return Repeats(repeated=later | shared, remarks=tuple(remarks))


def _how_alike(exact: IntArray, rows: IntArray, partner: IntArray) -> str:
    """How many of the rows have exactly the text of their partner, or of an earlier row, and how many nearly."""
    same = (exact[rows] == exact[partner[rows]]) | (exact[rows] != rows)
    return f"{same.sum():,} exactly and {len(rows) - same.sum():,} nearly"


def _shown(found: IntArray, partner: IntArray, rows: Sequence[LabelledText]) -> str:
    """The first rows and their partners."""
    pairs = [f"{rows[int(row)].place} and {rows[int(partner[row])].place}" for row in found[:_SHOWN]]
    return "; ".join(pairs) + ("; ..." if len(found) > _SHOWN else "")


def _meaning(row: LabelledText) -> Any:
    return row.label if row.target is None else row.target


def _conflicts(rows: Sequence[LabelledText], exact: IntArray) -> list[str]:
    """The remark on equal texts with different labels."""
    groups: dict[int, list[int]] = defaultdict(list)
    for row in np.flatnonzero(np.bincount(exact, minlength=len(rows))[exact] > 1):
        groups[int(exact[row])].append(int(row))
    pairs = []
    for group in groups.values():
        first = _meaning(rows[group[0]])
        other = next((row for row in group[1:] if _meaning(rows[row]) != first), None)
        if other is not None:
            pairs.append((group[0], other))
    if not pairs:
        return []
    rows_shown = ((rows[one], rows[other]) for one, other in pairs[:_SHOWN])
    shown = [f"{a.place} ({a.label!r:.40}) and {b.place} ({b.label!r:.40})" for a, b in rows_shown]
    more = "; ..." if len(pairs) > _SHOWN else ""
    have = "text has" if len(pairs) == 1 else "texts have"
    return [f"{len(pairs):,} {have} different labels in different rows: {'; '.join(shown)}{more}"]
