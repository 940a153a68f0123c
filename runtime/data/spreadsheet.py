"""Excel's .xlsx -> records: a sheet, whose first non-blank row names the columns."""

from __future__ import annotations

import warnings
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack
from typing import IO, Any

from nopad.runtime.data.opening import Opened, seekable
from nopad.runtime.data.table import DataSource, Item, Table, need, unreadable
from nopad.runtime.errors import InputFileError

_DAMAGED = (zipfile.BadZipFile, KeyError, ValueError, TypeError, OSError, EOFError, SyntaxError)


def open_spreadsheet(opened: Opened, source: DataSource, sheet: str | None, stack: ExitStack) -> Table:
    """The rows of a sheet (None: the first visible sheet). Raises `InputFileError`, `EnvironmentProblem`."""
    path, file = source.location()[0], seekable(opened.file)
    _check_kind(file, path)
    openpyxl = need("openpyxl", f"{path} (a spreadsheet)")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            book = openpyxl.load_workbook(file, read_only=True, data_only=True)
    except _DAMAGED as error:
        raise unreadable(path, error) from None
    stack.callback(book.close)
    page = _page(book, path, sheet)
    page.reset_dimensions()  # some programs write wrong dimensions
    rows = _rows(page, path)
    head = next(((number, cells) for number, cells in rows if any(cell is not None for cell in cells)), None)
    if head is None:
        raise InputFileError(f"{path}, sheet {page.title!r} is empty: it has no header and no rows")
    columns = ["" if cell is None else str(cell).strip() for cell in head[1]]
    others = [other.title for other in book.worksheets if other.title != page.title]
    remark = f"{path}: read sheet {page.title!r}; name another as {path}#SHEET (there are {', '.join(others)})"
    return Table(
        name=f"{path}, sheet {page.title!r}",
        kind="spreadsheet",
        items=_items(rows, columns),
        columns=tuple(dict.fromkeys(column for column in columns if column)),
        repeated=frozenset(column for column in columns if column and columns.count(column) > 1),
        unit="row",
        spreadsheet=True,
        remarks=(remark,) if others and sheet is None else (),
    )


def _check_kind(file: IO[bytes], path: str) -> None:
    try:
        with zipfile.ZipFile(file) as archive:
            names = set(archive.namelist())
            mime = archive.read("mimetype") if "mimetype" in names else b""
    except (zipfile.BadZipFile, OSError, EOFError, ValueError) as error:
        raise unreadable(path, error) from None
    if b"opendocument.spreadsheet" in mime:
        raise InputFileError(f"{path} is an OpenDocument spreadsheet; save it as .xlsx or CSV")
    if any(name.startswith("xl/") and name.endswith(".bin") for name in names) and "xl/workbook.bin" in names:
        raise InputFileError(f"{path} is a binary Excel file (.xlsb); save it as .xlsx or CSV")
    if not any(name.lstrip("/").lower() == "xl/workbook.xml" for name in names):
        raise InputFileError(f"{path} is a ZIP archive; unpack it, and name the file or folder in it")
    file.seek(0)


def _page(book: Any, path: str, sheet: str | None) -> Any:
    pages = book.worksheets
    if sheet is None:
        visible = [page for page in pages if page.sheet_state == "visible"] or pages
        if not visible:
            raise InputFileError(f"{path} has no sheet with rows")
        return visible[0]
    for page in pages:
        if page.title.strip().casefold() == sheet.strip().casefold():
            return page
    raise InputFileError(f"{path} has no sheet {sheet!r}; there are {', '.join(page.title for page in pages)}")


def _rows(page: Any, path: str) -> Iterator[tuple[int, list[Any]]]:
    """Cells of each row: numbers, texts, dates, booleans, results of formulas; None if empty or an error."""
    rows = iter(page.iter_rows())
    number = 0
    while True:
        try:
            with warnings.catch_warnings():  # about Excel extensions that openpyxl ignores
                warnings.simplefilter("ignore")
                row = next(rows, None)
        except _DAMAGED as error:
            raise unreadable(f"{path}, after row {number}", error) from None
        if row is None:
            return
        number += 1
        yield number, [None if cell.data_type == "e" else cell.value for cell in row]


def _items(rows: Iterator[tuple[int, list[Any]]], columns: list[str]) -> Iterator[Item]:
    for number, cells in rows:
        if all(cell is None for cell in cells):
            continue
        if any(cell is not None for cell in cells[len(columns) :]):
            yield number, f"the row has {len(cells)} cells, the header {len(columns)}; name every column"
        else:
            values = cells + [None] * (len(columns) - len(cells))
            yield number, {name: value for name, value in zip(columns, values, strict=False) if name}
