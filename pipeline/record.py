"""What has been run: `run.json` in the run's folder. Written whole after every step, and before it.

Paths in `parts` are relative or those of the recipe, so that the folder can be moved.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from nopad.runtime.atomic import write_file
from nopad.runtime.errors import InputFileError, NewerVersionError

FILE = "run.json"
FORMAT = 1
State = Literal["running", "done", "failed", "interrupted"]


@dataclass(frozen=True, kw_only=True)
class Record:
    """A step as it was last run."""

    parts: Mapping[str, Any]  # everything that it depends on: `nopad.pipeline.freshness.parts_of`
    state: State  # running: it is, or this process was killed
    started: str  # UTC, ISO 8601
    seconds: float = 0.0
    exit_code: int | None = None
    arguments: tuple[str, ...] = ()
    results: tuple[Any, ...] = ()  # the JSON lines that it wrote to stdout


@dataclass(frozen=True, kw_only=True)
class Output:
    """The output of a step."""

    made: str | None  # its digest when its step had made it
    now: str | None  # its digest after the last step that changed it
    changed_by: Mapping[str, str] = field(default_factory=dict)  # the steps that changed it since, and their keys


@dataclass(frozen=True, kw_only=True)
class Book:
    """All records of a run's folder by the names of their steps. Replaced, never changed."""

    records: Mapping[str, Record] = field(default_factory=dict)
    outputs: Mapping[str, Output] = field(default_factory=dict)


def read_book(folder: Path) -> Book:
    """The records of a folder, none where there is no file. Raises `InputFileError` for a damaged one."""
    path = folder / FILE
    try:
        raw = json.loads(path.read_bytes().decode("utf-8", "surrogateescape"))
        if raw["format"] > FORMAT:
            raise NewerVersionError(f"{path} was written by a newer nopad: upgrade, or name another --output")
        records = {name: _record(one) for name, one in raw["steps"].items()}
        outputs = {name: Output(**one) for name, one in raw["outputs"].items()}
        return Book(records=records, outputs=outputs)
    except FileNotFoundError:
        return Book()
    except OSError as error:
        raise InputFileError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise InputFileError(f"{path} is damaged: remove it, and every step runs again") from None


def write_book(folder: Path, book: Book) -> None:
    """Write all records, whole or not at all."""
    raw = {
        "format": FORMAT,
        "steps": {name: asdict(one) for name, one in book.records.items()},
        "outputs": {name: asdict(one) for name, one in book.outputs.items()},
    }
    write_file(folder / FILE, json.dumps(raw, indent=1, ensure_ascii=False).encode("utf-8", "surrogateescape"))


def _record(raw: Mapping[str, Any]) -> Record:
    record = Record(**{**raw, "arguments": tuple(raw["arguments"]), "results": tuple(raw["results"])})
    if record.state not in get_args(State) or not isinstance(record.parts, dict):
        raise ValueError("state or parts")
    return record
