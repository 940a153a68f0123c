"""Rows that are left out: what the user chooses, bad rows refused, or counted and shown, and rows without a text."""

from __future__ import annotations

from typing import Any, Literal, get_args

from nopad.training.errors import DataError

OnBadRow = Literal["refuse", "skip"]
ON_BAD_ROW: tuple[OnBadRow, ...] = get_args(OnBadRow)
OnDuplicate = Literal["keep", "drop"]
ON_DUPLICATE: tuple[OnDuplicate, ...] = get_args(OnDuplicate)
_SHOWN = 3


def has_half_a_character(text: str) -> bool:
    """Whether a text holds a lone surrogate, which no encoding has and no tokenizer takes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def checked_text(value: Any, column: str) -> str | None:
    """The text of a cell, None where it is empty. Raises `ValueError` for what is no text, or half a character."""
    if value is None or value != value or (isinstance(value, str) and not value.strip()):
        return None
    if not isinstance(value, str):
        raise ValueError(f"column {column!r} holds {value!r:.80}, which is no text")
    if has_half_a_character(value):
        raise ValueError(f"column {column!r} holds half a character (a lone surrogate)")
    return value


class BadRows:
    """The bad rows of one part of the data; `choice` says what becomes of them."""

    def __init__(self, choice: OnBadRow, part: str) -> None:
        self._choice, self._part = choice, part
        self._first: list[str] = []
        self.count = 0
        self._blank = 0

    @property
    def skipped(self) -> bool:
        """Whether bad rows are left out."""
        return self._choice == "skip"

    def add(self, place: str, reason: str) -> None:
        """Leave a row out. Raises `DataError` where bad rows are refused."""
        if not self.skipped:
            raise DataError(f"{place}: {reason}; mend or remove it (--bad-rows skip leaves out all such rows)")
        self.count += 1
        if len(self._first) < _SHOWN:
            self._first.append(f"{place}: {reason:.200}")

    def add_blank(self) -> None:
        """Leave out a row that has no text: that is no fault, whatever the choice."""
        self._blank += 1

    def remark_on_blank(self, rows: int, what: str) -> list[str]:
        """How many of so many rows were left out since they `what` (have no text in a column)."""
        remark = f"{self._blank:,} of {rows:,} rows of the {self._part} data {what}: left out"
        return [remark] if self._blank else []

    def remarks(self) -> list[str]:
        """How many rows were left out, and the first of them."""
        if not self.count:
            return []
        more = f"; and {self.count - len(self._first):,} more" if self.count > len(self._first) else ""
        what = "row is" if self.count == 1 else "rows are"
        return [f"{self.count:,} bad {what} left out of the {self._part} data: {'; '.join(self._first)}{more}"]
