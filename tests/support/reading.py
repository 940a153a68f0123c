"""Shared by the tests of the reader."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nopad.runtime.data.records import open_table, read_rows


def records(source: Any, **options: Any) -> list[dict[str, Any]]:
    """All records of a source that has no bad row."""
    with open_table(source if not isinstance(source, Path) else str(source), **options) as table:
        records = [record for _, record in table.items]
    assert all(isinstance(record, dict) for record in records), records
    return records  # type: ignore[return-value]


def texts(source: Any, *arguments: Any, **options: Any) -> list[Any]:
    """All texts of a source that has no bad row."""
    rows = list(read_rows(source if not isinstance(source, Path) else str(source), *arguments, **options))
    assert [row for row in rows if row.error] == []
    return [row.text for row in rows]


def outcome(source: Any, *arguments: Any, **options: Any) -> dict[int, str]:
    """Each row's number, and its text or, behind `! `, why it has none."""
    rows = list(read_rows(source if not isinstance(source, Path) else str(source), *arguments, **options))
    numbers = [row.line for row in rows]
    assert numbers == sorted(set(numbers)), numbers
    return {row.line: f"! {row.error}" if row.error else str(row.text) for row in rows}
