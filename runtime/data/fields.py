"""Finding the text, the label or a column in a record: by name, by dotted path or by common names."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from nopad.runtime.data.table import Table
from nopad.runtime.errors import InputFileError

# Columns that every command looks for, in this order, if the user names none.
TEXT_COLUMNS = (
    "text",
    "sentence",
    "content",
    "review",
    "review_body",
    "review_text",
    "body",
    "comment",
    "comment_text",
    "tweet",
    "message",
    "utterance",
    "document",
)
LABEL_COLUMNS = ("label", "labels", "score", "class", "category", "target", "sentiment", "intent", "rating", "stars")
# Marks an absent value.
MISSING: Any = object()
_MOST_NAMED = 20


def plain_name(name: str) -> str:
    """A column's name without variations: case, surrounding blanks."""
    return name.strip().casefold()


def find_column(columns: Collection[str], name: str) -> str | None:
    """The column `name`; else the only column that differs from it only in case and surrounding blanks.

    Raises `ValueError` if there are several.
    """
    if name in columns:
        return name
    alike = [column for column in columns if plain_name(column) == plain_name(name)]
    if len(alike) > 1:
        raise ValueError(f"{name!r} may be {' or '.join(map(repr, alike))}")
    return alike[0] if alike else None


def value_at(record: Mapping[str, Any], path: str) -> Any:
    """The value of a key (whatever its case), or at a dotted path (`meta.review.text`, `messages.0.content`).

    A key that contains the dots takes precedence. `MISSING` if there is none; raises `ValueError` if it is ambiguous.
    """
    name = find_column(record, path)
    if name is not None:
        return record[name]
    value: Any = record
    parts = path.split(".")
    for place, part in enumerate(parts if len(parts) > 1 else ()):
        if isinstance(value, Mapping):
            rest = ".".join(parts[place:])
            if rest in value:  # {"meta": {"a.b": ..}}
                return value[rest]
            key = find_column(value, part)
            value = MISSING if key is None else value[key]
        elif isinstance(value, list) and part.isascii() and part.isdigit() and int(part) < len(value):
            value = value[int(part)]
        else:
            return MISSING
        if value is MISSING:
            return MISSING
    return value if len(parts) > 1 else MISSING


class Field:
    """A value of each record: at the user's `path`, else of the first of the `known` names that the table has.

    `option` is the command-line option for it. Where every record has its own keys, the field is the known name that
    most of the first records have. Raises `InputFileError` if the table lacks a `required` column.
    """

    def __init__(
        self, table: Table, path: str | None, known: Sequence[str], option: str, *, required: bool = True
    ) -> None:
        self._table, self._path, self._known, self._option = table, path, known, option
        self._name: str | None = path
        if table.columns is None:
            if path is None:
                names = [name for record in table.sample if (name := self._choose(record)) is not None]
                ranked = sorted(set(names), key=lambda name: known.index(plain_name(name)))
                self._name = max(ranked, key=names.count) if names else None
            return
        column = self._choose(table.columns)
        if column is None and path is not None and self._begins(path, table.columns):
            column = path  # the rest of the path is in each record
        if column is None and required:
            raise InputFileError(self._absent(table))
        if column in table.repeated:
            raise InputFileError(f"{table.name} has several columns {column!r}; rename all but the right one")
        self._name = column

    @property
    def name(self) -> str | None:
        """The column or path; None until a record has one of the known names."""
        return self._name

    def value(self, record: Mapping[str, Any]) -> Any:
        """The record's value, or `MISSING`. Raises `ValueError` if the name is ambiguous."""
        if self._name is None:
            if self._table.columns is not None:
                return MISSING
            self._name = self._choose(record)
        if self._name is None:
            return MISSING
        return record[self._name] if self._name in record else value_at(record, self._name)

    def text(self, record: Mapping[str, Any]) -> str:
        """The record's text. Raises `ValueError` with the reason why it has none."""
        value = self.value(record)
        if value is MISSING:
            named = repr(self._name) if self._name else " or ".join(self._known[:4])
            hint = f"name the right one with {self._option}"
            raise ValueError(f"field {named} is missing (found: {name_list(record)}); {hint}")
        if self._table.spreadsheet and value is not None and not isinstance(value, str):
            return as_cell(value)
        if not isinstance(value, str):
            raise ValueError(f"field {self._name!r} is not a text; name the right one with {self._option}")
        return value

    def _choose(self, columns: Collection[str]) -> str | None:
        return self._first((self._path,) if self._path is not None else self._known, columns)

    def _begins(self, path: str, columns: Collection[str]) -> bool:
        """Whether a dotted path begins with one of the columns."""
        parts = path.split(".")
        return self._first([".".join(parts[:end]) for end in range(1, len(parts))], columns) is not None

    def _first(self, names: Sequence[str], columns: Collection[str]) -> str | None:
        try:
            return next((column for name in names if (column := find_column(columns, name)) is not None), None)
        except ValueError as error:
            reason = f"{error}; name one exactly with {self._option}"
            raise InputFileError(f"{self._table.name} has several such columns: {reason}") from None

    def _absent(self, table: Table) -> str:
        if table.kind == "plain text":
            return f"{table.name} is plain text, a text on each line: it has no column to name with {self._option}"
        named = repr(self._path) if self._path is not None else " or ".join(self._known[:4])
        hint = f"name one with {self._option}"
        if table.untyped:
            hint += "; if its first line is a row already, name its columns with --columns"
        return f"{table.name} has no column {named} (it has: {name_list(table.columns or ())}); {hint}"


def name_list(names: Collection[str]) -> str:
    """Names for a message, as many as a reader can take in."""
    shown = sorted(map(str, names)) if isinstance(names, Mapping) else list(map(str, names))
    more = f" and {len(shown) - _MOST_NAMED} more" if len(shown) > _MOST_NAMED else ""
    return (", ".join(name[:60] for name in shown[:_MOST_NAMED]) or "nothing") + more


def as_cell(value: Any) -> str:
    """A spreadsheet's value as the cell shows it."""
    if isinstance(value, bool):
        return str(value).upper()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return value.isoformat() if hasattr(value, "isoformat") else str(value)
