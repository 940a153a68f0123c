"""`DataSource`, what to read and how, and `Table`, its records."""

from __future__ import annotations

import codecs
import importlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from nopad.model.packages import install_hint
from nopad.runtime.errors import EnvironmentProblem, InputFileError, UsageError

# A row's number (1 is the first line of a text file, the first row of other kinds), and its record or, as a str, the
# reason why it has none.
Item = tuple[int, dict[str, Any] | str]


@dataclass(frozen=True, kw_only=True)
class DataSource:
    """A file or folder, or `-` for stdin, and how to read it.

    `path` may end in `#NAME`: a sheet of a spreadsheet, a split of a folder. `encoding` is that of text files (None:
    UTF-8). `columns` names the columns of a CSV or TSV without a header line. Raises `UsageError`.
    """

    path: str
    encoding: str | None = None
    columns: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.encoding is not None:
            try:
                known = codecs.lookup(self.encoding)._is_text_encoding
            except LookupError:
                known = False
            if not known:
                raise UsageError(f"--encoding {self.encoding} is unknown; for example utf-8, utf-16, cp1252, latin-1")
        if any(not name.strip() or self.columns.count(name) > 1 for name in self.columns):
            raise UsageError(f"--columns must name each column once, got {','.join(self.columns)!r}")

    def location(self) -> tuple[str, str | None]:
        """The path on disk, and the name of the sheet or split, if any."""
        base, _, part = self.path.rpartition("#")
        if base and part and not os.path.exists(self.path) and os.path.exists(base):
            return base, part
        return self.path, None


@dataclass(frozen=True, kw_only=True)
class Table:
    """An open source. `items` can be read once."""

    name: str
    kind: str  # for messages: "CSV", "plain text"
    items: Iterator[Item]
    sample: tuple[Mapping[str, Any], ...] = ()  # the first records
    columns: tuple[str, ...] | None = None  # None: every record has its own keys
    repeated: frozenset[str] = frozenset()  # names that the header has more than once
    unit: str = "line"  # what the numbers count
    untyped: bool = False  # every value is a text, as in CSV
    spreadsheet: bool = False  # a text may be stored as a number or a date
    class_names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # column -> names of its class numbers
    remarks: tuple[str, ...] = ()
    where: Callable[[int], str] | None = None
    ends: Sequence[int] = ()  # of several files: the number of the last row of each that has been read

    def place(self, number: int) -> str:
        """The position of a row, for messages."""
        return self.where(number) if self.where is not None else f"{self.name}, {self.unit} {number}"


def source_of(source: DataSource | str) -> DataSource:
    """A path as a source with default options."""
    return DataSource(path=source) if isinstance(source, str) else source


def need(package: str, what: str) -> Any:
    """Import a module of the extra `tables`. Raises `EnvironmentProblem`."""
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        missing = (error.name or package).split(".")[0]
        raise EnvironmentProblem(f"{what} needs the package {missing}: {install_hint('tables')}") from None


def unreadable(name: str, error: BaseException) -> InputFileError:
    """The error for a file that is truncated, or of another kind than it seems."""
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return InputFileError(f"cannot read {name}: {reason}; copy or write the file again")
