"""Rows in groups, and how well each is answered: by length, by what was cut off, and by the values of a column."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from nopad.analysis.intervals import Estimate
from nopad.runtime.data.labels import spelled_number

Mask = npt.NDArray[np.bool_]  # [rows]
Measure = Callable[[Mask], Estimate]
_MOST = 12  # values of a column
_SHORTEST = 16  # tokens of the first length


@dataclass(frozen=True, kw_only=True)
class Group:
    """Some of the rows, and their score: the accuracy, or the mean error of numbers."""

    name: str
    rows: int
    score: Estimate


def scored(groups: Mapping[str, Mask], measure: Measure) -> tuple[Group, ...]:
    """The groups that have rows, with their scores."""
    return tuple(
        Group(name=name, rows=int(mask.sum()), score=measure(mask)) for name, mask in groups.items() if mask.any()
    )


def by_length(tokens: npt.NDArray[np.int64]) -> dict[str, Mask]:
    """Rows by their tokens: up to 16, then up to twice as many each."""
    groups: dict[str, Mask] = {}
    low, high = 1, _SHORTEST
    while low <= tokens.max():
        groups[f"{low:,}–{high:,}"] = (tokens >= low) & (tokens <= high)
        low, high = high + 1, high * 2
    return groups


def by_value(values: Sequence[Any]) -> dict[str, Mask]:
    """Rows by a column's value, the most frequent first; numbers of very many values by their quarters.

    A row whose value is a list is in the group of each of its items. Rare values are together in one group.
    """
    items = [tuple(value) if isinstance(value, list) else (value,) for value in values]
    numbers = [spelled_number(value) for value in values if value is not None]
    known = [float(number) for number in numbers if number is not None and np.isfinite(number)]
    if known and len(known) == len(numbers) and len(set(known)) > _MOST:
        return _quarters(values, np.array(known))
    names = [{_name(item) for item in row} for row in items]
    counts = Counter(name for row in names for name in sorted(row))
    shown = [name for name, _ in counts.most_common(_MOST)]
    groups = {name: _mask(name in row for row in names) for name in shown}
    if len(counts) > _MOST:
        groups[f"{len(counts) - _MOST:,} other values"] = _mask(bool(row - set(shown)) for row in names)
    return groups


def _quarters(values: Sequence[Any], known: npt.NDArray[np.float64]) -> dict[str, Mask]:
    numbers = np.array([float("nan") if value is None else float(spelled_number(value) or 0) for value in values])
    edges = np.unique(np.quantile(known, (0, 0.25, 0.5, 0.75, 1)))
    groups = {}
    for n, (low, high) in enumerate(zip(edges, edges[1:], strict=False)):
        last = n == len(edges) - 2
        inside = (numbers >= low) & ((numbers <= high) if last else (numbers < high))
        groups[f"{low:g} to {'' if last else 'below '}{high:g}"] = inside
    return groups | ({"(none)": np.isnan(numbers)} if np.isnan(numbers).any() else {})


def _mask(members: Iterable[bool]) -> Mask:
    return np.fromiter(members, dtype=np.bool_)


def _name(value: Any) -> str:
    if value is None or value == "":
        return "(none)"
    text = " ".join(str(value).split()) if isinstance(value, Hashable) else repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
