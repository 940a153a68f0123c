"""JSON -> records: JSON lines, arrays, and the layouts of pandas and datasets."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Sequence
from typing import Any

from nopad.runtime.data.fields import plain_name, value_at
from nopad.runtime.data.opening import Lines, not_decoded, undecodable
from nopad.runtime.data.table import DataSource, Item, Table
from nopad.runtime.errors import InputFileError

SUFFIXES = (".jsonl", ".ndjson", ".json")
# A first line of an object that continues on later lines.
_BEGINNING = re.compile(r'\s*\{\s*(?:"(?:[^"\\]|\\.)*+"\s*:\s*[\[{]?\s*|"(?:[^"\\]|\\.)*+"\s*:.*,\s*)?', re.DOTALL)
_ARRAY = re.compile(r"\s*\[\s*(\{|$)")


def is_json(line: str, suffix: str) -> bool:
    """Whether the first line of a file with no known ending is the start of JSON."""
    if _ARRAY.match(line):
        return True
    return line.lstrip().startswith("{") and (not suffix or isinstance(_parse(line), dict))


def open_json(lines: Lines, source: DataSource, suffix: str, names: Collection[str]) -> Table:
    """The records of a JSON text: one per line, or a single document. `names` are possible keys of the text.

    Raises `InputFileError` if a document is broken; a broken line is an error for that line only.
    """
    first = lines.first_text()
    parsed = _parse(first)
    if isinstance(parsed, str):  # a line is not the whole document, or is broken
        array = first.lstrip().startswith("[")
        document = array or (suffix not in (".jsonl", ".ndjson") and _BEGINNING.fullmatch(first) is not None)
    else:
        first_of_many = isinstance(parsed, dict) and (_is_record(parsed, names) or _layout(parsed, names) is None)
        cells = isinstance(parsed, list) and not all(isinstance(cell, list | dict) for cell in parsed)
        document = not first_of_many and not (cells and source.columns) and _is_last(lines)
    if not document:
        return Table(name=source.path, kind="JSON Lines", items=_lines(lines, source))
    values = enumerate(_document(lines, source, names), 1)
    items = ((number, _record(value, "the item", source.columns)) for number, value in values)
    return Table(name=source.path, kind="JSON", items=items, unit="item")


def _is_last(lines: Lines) -> bool:
    """Whether nothing follows the first line."""
    taken = []
    for line in lines:
        taken.append(line)
        if line.strip():
            break
    last = not lines.first_text()
    lines.put_back(taken)
    return last


def _lines(lines: Lines, source: DataSource) -> Iterator[Item]:
    for line in lines:
        if undecodable(line):
            yield lines.number, not_decoded(source.encoding)
        elif line.strip():
            value = _parse(line)
            yield lines.number, value if isinstance(value, str) else _record(value, "the line", source.columns)


def _parse(line: str) -> Any:
    """The line's value; or, as a str, the reason why it cannot be a record."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:  # also numbers with too many digits, nesting too deep
        return f"the line is not valid JSON: {error}"
    return "the line is a JSON str, expected an object" if isinstance(value, str) else value


def _record(value: Any, what: str, columns: Sequence[str]) -> dict[str, Any] | str:
    if isinstance(value, list) and columns:
        return dict(zip(columns, value, strict=False))
    if isinstance(value, dict):
        return value
    hint = "; name its cells with --columns" if isinstance(value, list) else ""
    return f"{what} is a JSON {type(value).__name__}, expected an object{hint}"


def _document(lines: Lines, source: DataSource, names: Collection[str]) -> list[Any]:
    text = "".join(lines)
    if undecodable(text):
        reason = not_decoded(source.encoding).replace("the line", "it", 1)
        raise InputFileError(f"{source.path} is JSON, but {reason}")
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputFileError(f"{source.path} is not valid JSON: {error}") from None
    if isinstance(value, dict):
        return (None if _is_record(value, names) else _layout(value, names)) or [value]
    if not isinstance(value, list):
        return [value]
    return [{"text": text} for text in value] if value and all(isinstance(text, str) for text in value) else value


def _is_record(value: dict[str, Any], names: Collection[str]) -> bool:
    """Whether the object itself holds a text."""
    return any(isinstance(value_at(value, name), str) for name in names)


def _layout(value: dict[str, Any], names: Collection[str]) -> list[Any] | None:
    """The records of an object that holds them all: pandas' orients, columns as lists, or a single array."""
    parts = list(value.values())
    rows = value.get("data")
    if isinstance(value.get("columns"), list) and isinstance(rows, list) and all(isinstance(r, list) for r in rows):
        return [dict(zip(map(str, value["columns"]), row, strict=False)) for row in rows]  # split
    if {"schema", "data"} == set(value) and isinstance(value["data"], list):  # table
        index = (value["schema"] or {}).get("primaryKey", []) if isinstance(value["schema"], dict) else []
        drop = {"index"} & set(index if isinstance(index, list) else [])
        return [{k: v for k, v in row.items() if k not in drop} if isinstance(row, dict) else row
                for row in value["data"]]  # fmt: skip
    if parts and all(isinstance(part, dict) for part in parts):
        return _of_dicts(value, names)
    columns = parts and all(isinstance(part, list) for part in parts) and len({len(part) for part in parts}) == 1
    if columns and (len(parts) > 1 or not all(isinstance(item, dict) for item in parts[0])):  # {"text": [..], ..}
        return [dict(zip(value, row, strict=True)) for row in zip(*parts, strict=True)]
    arrays = [part for part in parts if isinstance(part, list) and part and all(isinstance(o, dict) for o in part)]
    return arrays[0] if len(arrays) == 1 else None


def _of_dicts(value: dict[str, dict[str, Any]], names: Collection[str]) -> list[Any]:
    """The records of pandas' orients `columns` ({"text": {"0": ..}}) and `index` ({"0": {"text": ..}})."""
    inner = dict.fromkeys(key for part in value.values() for key in part)
    outer, within = ({plain_name(key) for key in keys} & set(names) for keys in (value, inner))
    columns = bool(outer) if bool(outer) != bool(within) else not all(key.isdigit() for key in value)
    if not columns:
        return list(value.values())
    return [{name: part[key] for name, part in value.items() if key in part} for key in inner]
