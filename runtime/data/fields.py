"""Which value of a record is the text, the label or a column to keep: by name, dotted path or the usual names."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from nopad.runtime.data.table import Table
from nopad.runtime.errors import InputFileError

# The names that every command looks for where none is given, in this order.
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
# In place of a value that is not there.
MISSING: Any = object()
_MOST_NAMED = 20


def plain_name(name: str) -> str:
    """A column's name without what people write differently: case, blanks around it."""
    return name.strip().casefold()


def find_column(columns: Collection[str], wanted: str) -> str | None:
    """The column of that name; else the only one that differs from it in nothing but case and blanks around it.

    Raises `ValueError` where there are several.
    """
    if wanted in columns:
        return wanted
    alike = [name for name in columns if plain_name(name) == plain_name(wanted)]
    if len(alike) > 1:
        raise ValueError(f"{wanted!r} may be {' or '.join(map(repr, alike))}")
    return alike[0] if alike else None


def value_at(record: Mapping[str, Any], path: str) -> Any:
    """The value of a key, of one that differs in case, or at a dotted path (`meta.review.text`, `messages.0.content`).

    A key that has dots itself comes first. `MISSING` if there is none; raises `ValueError` if several keys are meant.
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
    """One value of every record: at the path that was `given`, else of the first of the `known` names that is there.

    `option` is what names it. Where records have names of their own, the known name that most of the first ones have
    is the field of all. Raises `InputFileError` if the table has no such column, unless the
    field is not `required`.
    """

    def __init__(
        self, table: Table, given: str | None, known: Sequence[str], option: str, *, required: bool = True
    ) -> None:
        self._table, self._given, self._known, self._option = table, given, known, option
        self._found: str | None = given
        if table.columns is None:
            if given is None:
                names = [name for record in table.sample if (name := self._choose(record)) is not None]
                ranked = sorted(set(names), key=lambda name: known.index(plain_name(name)))
                self._found = max(ranked, key=names.count) if names else None
            return
        found = self._choose(table.columns)
        if found is None and given is not None and any(one in table.columns for one in _stems(given, table.columns)):
            found = given  # the rest of the path is in each record
        if found is None and required:
            raise InputFileError(self._absent(table))
        if found in table.repeated:
            raise InputFileError(f"{table.name} has several columns {found!r}; rename all but the right one")
        self._found = found

    @property
    def name(self) -> str | None:
        """The column or path; None as long as no record has had one of the known names."""
        return self._found

    def value(self, record: Mapping[str, Any]) -> Any:
        """The record's value, or `MISSING`. Raises `ValueError` if several keys are meant."""
        if self._found is None:
            if self._table.columns is not None:
                return MISSING
            self._found = self._choose(record)
        if self._found is None:
            return MISSING
        return record[self._found] if self._found in record else value_at(record, self._found)

    def text(self, record: Mapping[str, Any]) -> str:
        """The record's text. Raises `ValueError` with the reason why it has none."""
        value = self.value(record)
        if value is MISSING:
            named = repr(self._found) if self._found else " or ".join(self._known[:4])
            raise ValueError(f"field {named} is missing (found: {listed(record)}); name the right one with "
                             f"{self._option}")  # fmt: skip
        if self._table.spreadsheet and value is not None and not isinstance(value, str):
            return as_cell(value)
        if not isinstance(value, str):
            raise ValueError(f"field {self._found!r} is not a text; name the right one with {self._option}")
        return value

    def _choose(self, columns: Collection[str]) -> str | None:
        try:
            for name in (self._given,) if self._given is not None else self._known:
                if (found := find_column(columns, name)) is not None:
                    return found
        except ValueError as error:
            raise InputFileError(f"{self._table.name} has several such columns: {error}; name one exactly with "
                                 f"{self._option}") from None  # fmt: skip
        return None

    def _absent(self, table: Table) -> str:
        if table.kind == "plain text":
            return f"{table.name} is plain text, every line of it a text: it has no column to name with {self._option}"
        wanted = repr(self._given) if self._given is not None else " or ".join(self._known[:4])
        hint = f"name one with {self._option}"
        if table.untyped:
            hint += "; if its first line is a row already, name its columns with --columns"
        return f"{table.name} has no column {wanted} (it has: {listed(table.columns or ())}); {hint}"


def _stems(path: str, columns: Collection[str]) -> list[str]:
    """The columns that a dotted path may begin with."""
    parts = path.split(".")
    found = [find_column(columns, ".".join(parts[:end])) for end in range(1, len(parts))]
    return [name for name in found if name is not None]


def listed(names: Collection[str]) -> str:
    """Names for a message, not more than one can read."""
    some = sorted(map(str, names)) if isinstance(names, Mapping) else list(map(str, names))
    more = f" and {len(some) - _MOST_NAMED} more" if len(some) > _MOST_NAMED else ""
    return (", ".join(name[:60] for name in some[:_MOST_NAMED]) or "nothing") + more


def as_cell(value: Any) -> str:
    """A value of a spreadsheet as its cell shows it."""
    if isinstance(value, bool):
        return str(value).upper()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return value.isoformat() if hasattr(value, "isoformat") else str(value)
