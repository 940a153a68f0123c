"""The meaning of labels in files, the same for training data and the gate's labelled data. Pure functions."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

# ASCII digits, no leading zero ("0102" is a code), no underscores, no decimal comma.
_WHOLE = re.compile(r"[+-]?(0|[1-9][0-9]*)")
_DECIMAL = re.compile(r"[+-]?((0|[1-9][0-9]*)(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[+-]?(nan|inf|infinity)", re.IGNORECASE)


def spelled_number(value: Any) -> int | float | None:
    """The number that `value` is or, as a text, spells (surrounding blanks are ignored); else None.

    Whole numbers are int; numbers with a point or exponent, "nan" and "inf" are float. Booleans are not numbers.
    """
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    if not isinstance(value, str):
        return value
    text = value.strip()
    with suppress(ValueError):  # Python refuses integers of more than 4,300 digits
        if _WHOLE.fullmatch(text):
            return int(text)
        if _DECIMAL.fullmatch(text) or _NOT_FINITE.fullmatch(text):
            return float(text)
    return None


def zero_or_one(value: Any) -> float:
    """A cell of a column that stands for one label: 0 or 1, a boolean, or a text that spells one of these.

    Raises `ValueError` with the reason.
    """
    number = _boolean(value) if spelled_number(value) is None else spelled_number(value)
    if number not in (0, 1):
        raise ValueError("is not 0 or 1 (or true or false)")
    return float(number)


def is_hot(value: Any, width: int) -> bool:
    """Whether `value` is a list of `width` zeros and ones (multi-hot), not a list of the labels that apply."""
    return (
        isinstance(value, list)
        and len(value) == width
        and all(isinstance(item, bool) or spelled_number(item) in (0, 1) for item in value)
    )


def split_columns(field: str, columns: Sequence[str]) -> list[str]:
    """The columns that `field` names, separated by commas; a column whose name contains commas is taken whole."""
    if field in columns or "," not in field:
        return [field]
    return [name.strip() for name in field.split(",")]


def label_finder(names: Sequence[str], *, places: bool = True) -> Callable[[Any], int | None]:
    """The function that returns the index of a label in `names`, or None.

    A label matches a name as a text, as a number that the name spells (1, 1.0 and "1.0" match "1"), or as a boolean
    (true matches "True" and "true"). A whole number may be an index only if no name consists of digits, and not
    without `places`: where the order of the names is ours, not the data's.
    """
    by_text = {name: index for index, name in enumerate(names)}
    by_number: dict[int | float, int] = {}
    by_boolean: dict[bool, int] = {}
    for index, name in enumerate(names):
        number, boolean = spelled_number(name), _boolean(name)
        if number is not None:
            by_number.setdefault(number, index)
        if boolean is not None:
            by_boolean.setdefault(boolean, index)
    indices = places and not any(re.fullmatch(r"[+-]?[\d.,]*\d[\d.,]*", name.strip()) for name in names)

    def find(value: Any) -> int | None:
        if isinstance(value, str | int | float) and (exact := by_text.get(str(value))) is not None:
            return exact
        boolean = _boolean(value)
        if boolean in by_boolean:
            return by_boolean[boolean]
        number = int(value) if isinstance(value, bool) else spelled_number(value)
        if number is None or number in by_number:
            return None if number is None else by_number[number]
        if indices and 0 <= number < len(names) and number == int(number):
            return int(number)
        return None

    return find


def listed(values: Sequence[Any], most: int = 10) -> str:
    """The first `most` of `values` for a message, and the number of the others."""
    shown = ", ".join(str(value)[:80] for value in values[:most])
    return shown if len(values) <= most else f"{shown} and {len(values) - most:,} more"


def _boolean(value: Any) -> bool | None:
    word = value.strip().lower() if isinstance(value, str) else None
    return value if isinstance(value, bool) else {"true": True, "false": False}.get(word or "")
