"""What repeated texts mean for a data set: rows that repeat others, are in both halves, or contradict each other."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from nopad.training.bad_rows import OnDuplicate
from nopad.training.duplicates import IntArray, find_duplicates

_SHOWN = 3


@dataclass(frozen=True, kw_only=True)
class LabelledText:
    """A text with its label as messages show it, and its place."""

    text: str
    label: Any
    place: str


@dataclass(frozen=True, kw_only=True)
class Repeats:
    """Which training rows are not the first with their text, or stand in the evaluation data; and what to say."""

    repeated: npt.NDArray[np.bool_]  # [training rows]
    remarks: tuple[str, ...]


def find_repeats(
    train: Sequence[LabelledText], evaluation: Sequence[LabelledText], choice: OnDuplicate, *, classes: bool, near: bool
) -> Repeats:
    """Look for texts that repeat, exactly or (`near`) nearly. `classes`: equal texts should have equal labels."""
    rows = [*train, *evaluation]
    found = find_duplicates([row.text for row in rows], near=near)
    count, places = len(train), [row.place for row in rows]
    exact, groups = found.exact, found.near
    later = groups[:count] != np.arange(count)
    partner = np.full(count, -1)  # of each training row, an evaluation row with its text
    for roots in (groups, exact):  # an exact one rather than a near one
        last = {int(root): count + index for index, root in reversed(list(enumerate(roots[count:])))}
        own = np.array([last.get(int(root), -1) for root in roots[:count]], dtype=np.int64)
        partner = np.where(own >= 0, own, partner)
    shared = partner >= 0
    done = "left out" if choice == "drop" else "kept (--duplicates drop leaves them out)"
    remarks = []
    for rows_found, partners, what in (
        (np.flatnonzero(later), groups, f"of {count:,} rows of the training data repeat the text of an earlier one"),
        (np.flatnonzero(shared), partner, "rows of the training data have a text of the evaluation data"),
    ):
        if len(rows_found):
            alike, shown = _how_alike(exact, rows_found, partners), _shown(rows_found, partners, places)
            remarks.append(f"{len(rows_found):,} {what}, {alike}: {shown}; {done}")
    if classes:
        remarks += _conflicts(rows, exact)
    return Repeats(repeated=later | shared, remarks=tuple(remarks))


def _how_alike(exact: IntArray, rows: IntArray, partner: IntArray) -> str:
    """How many of the rows have exactly the text of their partner, or of an earlier row, and how many nearly."""
    same = (exact[rows] == exact[partner[rows]]) | (exact[rows] != rows)
    return f"{same.sum():,} exactly and {len(rows) - same.sum():,} nearly"


def _shown(rows: IntArray, partner: IntArray, places: Sequence[str]) -> str:
    """The first rows and their partners."""
    pairs = [f"{places[row]} and {places[int(partner[row])]}" for row in rows[:_SHOWN]]
    return "; ".join(pairs) + ("; ..." if len(rows) > _SHOWN else "")


def _conflicts(rows: Sequence[LabelledText], exact: IntArray) -> list[str]:
    """The remark on equal texts with different labels."""
    groups: dict[int, list[int]] = defaultdict(list)
    for row in np.flatnonzero(np.bincount(exact, minlength=len(rows))[exact] > 1):
        groups[int(exact[row])].append(int(row))
    pairs = []
    for group in groups.values():
        other = next((row for row in group if rows[row].label != rows[group[0]].label), None)
        if other is not None:
            pairs.append((rows[group[0]], rows[other]))
    if not pairs:
        return []
    shown = [f"{a.place} ({a.label!r:.40}) and {b.place} ({b.label!r:.40})" for a, b in pairs[:_SHOWN]]
    more = "; ..." if len(pairs) > _SHOWN else ""
    have = "text has" if len(pairs) == 1 else "texts have"
    return [f"{len(pairs):,} {have} different labels in different rows: {'; '.join(shown)}{more}"]
