"""CSV and TSV -> rows by RFC 4180. The delimiter is inferred from the header; a bad row is an error for itself."""

from __future__ import annotations

import csv
import functools
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field

from nopad.runtime.data.fields import plain_name
from nopad.runtime.data.opening import Lines, not_decoded, undecodable
from nopad.runtime.data.table import DataSource, Item, Table
from nopad.runtime.errors import InputFileError

# Characters of a cell. The csv module reads at most this far after an unclosed quote.
_LONGEST_CELL = 1 << 26
# Characters, from the first quote on, that are examined to see whether quotes have a meaning in a file with tabs.
_SAMPLE = 1 << 20
_DELIMITERS = (",", ";", "\t", "|")
_TABS = (".tsv", ".tab")
# A first line that Excel reads and writes: it names the separator.
_SEP = re.compile(r'"?sep=(.)"?\s*', re.IGNORECASE)
_LOOSE = re.compile(' +"')  # blanks before a cell's quote, which the csv module takes for parts of the cell
# Replaces a CR inside a line while the csv module reads it, since that would end the row at a CR. No text contains it:
# undecodable bytes become U+DC80 and above.
_CR = "\ud800"
_ADVICE = "close its quotes, and double those inside a text"


def is_table(line: str, names: Collection[str]) -> bool:
    """Whether the first line of a file with no known ending is a header: several cells, one of them in `names`."""
    if _SEP.fullmatch(line.rstrip("\r\n")):
        return True
    cells = _split_header(line, _delimiter(line, "", names))
    return len(cells) > 1 and any(plain_name(cell) in names for cell in cells)


def open_delimited(lines: Lines, source: DataSource, suffix: str, names: Collection[str]) -> Table:
    """The table in these lines. `names` are common column names, `suffix` is the ending of the file's name.

    Raises `InputFileError` if it has no readable header.
    """
    name = source.path
    first = lines.first_text()
    separator = _SEP.fullmatch(first.rstrip("\r\n"))
    if separator:
        next(line for line in lines if line.strip())
        first = lines.first_text()
    if not first:
        raise InputFileError(f"{name} is empty: it has no header line and no rows")
    delimiter = separator[1] if separator else _delimiter(first, suffix, names, len(source.columns))
    kind = "TSV" if delimiter == "\t" else "CSV"
    header: list[str] = list(source.columns)
    if header and [cell.strip() for cell in _split_header(first, delimiter)] == header:
        raise InputFileError(f"{name} has a header line of these names already: leave --columns out")
    if not header:
        number, cells = next(_Rows(lines, delimiter, None).read())
        if isinstance(cells, str):
            raise InputFileError(f"{name}, line {number}: the header is not valid {kind}: {cells}")
        header = [cell.strip() for cell in cells]
        if any(map(undecodable, header)):
            raise InputFileError(f"{name}, line {number}: {not_decoded(source.encoding)}")
    columns = _distinct(header)
    return Table(
        name=name,
        kind=kind,
        items=_items(_Rows(lines, delimiter, len(header)), columns, source),
        columns=tuple(column for column in columns if column),
        repeated=frozenset(name for name in header if name and header.count(name) > 1),
        untyped=True,
    )


def _distinct(header: list[str]) -> list[str]:
    """Distinct names, as pandas makes them: the second `text` is `text.1`. Empty names stay empty."""
    names: list[str] = []
    for name in header:
        distinct, count = name, 0
        while distinct and distinct in names:
            count += 1
            distinct = f"{name}.{count}"
        names.append(distinct)
    return names


def _items(rows: _Rows, columns: list[str], source: DataSource) -> Iterator[Item]:
    unnamed = "" in columns
    for number, cells in rows.read():
        if isinstance(cells, str):
            yield number, cells
        elif any(undecodable(cell) for cell in cells):
            yield number, not_decoded(source.encoding)
        elif any(cells[len(columns) :]):
            reason = f"the row has {len(cells)} cells, the header {len(columns)}; quote what holds a delimiter"
            yield number, reason
        else:
            record = dict(zip(columns, cells, strict=False))
            if unnamed:
                record.pop("", None)
            yield number, record


def _split_header(line: str, delimiter: str) -> list[str]:
    try:
        return next(csv.reader([line.replace("\r", "").replace("\n", "")], delimiter=delimiter), [])
    except csv.Error:
        return [line]


def _delimiter(line: str, suffix: str, names: Collection[str], width: int = 0) -> str:
    """The delimiter that gives the header the most known names, then most cells, then that of the file's ending."""
    preferred = "\t" if suffix in _TABS else ","

    def score(delimiter: str) -> tuple[bool, int, int, bool]:
        cells = _split_header(line, delimiter)
        known = sum(plain_name(cell) in names for cell in cells)
        return len(cells) == width > 0, known, len(cells), delimiter == preferred

    return max(_DELIMITERS, key=score)


@dataclass(frozen=True, kw_only=True)
class _Grammar:
    row: re.Pattern[str]  # strictly RFC 4180: no quote in an unquoted cell
    loose: re.Pattern[str]  # also blanks around quotes, or inner quotes written as \\" (Spark, databases)
    cell: re.Pattern[str]  # one cell of a `loose` row, with the delimiter before it


@functools.cache
def _grammar(delimiter: str) -> _Grammar:
    mark = re.escape(delimiter)
    quoted, escaped, bare = r'"[^"]*+(?:""[^"]*+)*+"', r'"(?:[^"\\]++|\\.|"")*+"', rf'[^"{mark}\r\n]*+'
    either, loose = f"(?:{quoted}|{bare})", f"(?: *{escaped} *(?={mark}|$)|{bare})"
    return _Grammar(
        row=re.compile(f"{either}(?:{mark}{either})*+"),
        loose=re.compile(f"{loose}(?:{mark}{loose})*+", re.DOTALL),
        cell=re.compile(f"(?:^|{mark})({loose})", re.DOTALL),
    )


def _hide_cr(line: str) -> str:
    """The line with every CR hidden from the csv module, except in its line end."""
    if "\r" in line:
        inside = line[: -2 if line.endswith("\r\n") else -1 if line.endswith("\r") else None]
        if "\r" in inside:
            return inside.replace("\r", _CR) + line[len(inside) :]
    return line


@dataclass
class _Feed:
    """Lines for the csv module; records those that it has read for the current row."""

    lines: Lines
    taken: list[str] = field(default_factory=list)

    def __iter__(self) -> _Feed:
        return self

    def __next__(self) -> str:
        line = _hide_cr(next(self.lines))
        self.taken.append(line)
        return line


class _Rows:
    """Rows as cells, each with its line number, or the reason why a line has none. Continues after a broken row.

    `width` is the number of columns in the header. A row over several lines must be strictly RFC 4180 and have that
    many cells; otherwise its first line lacks a closing quote, and the lines after it are separate rows. Reading
    resumes at the next line that is a whole row; the lines before it are errors.
    """

    def __init__(self, lines: Lines, delimiter: str, width: int | None) -> None:
        self._lines, self._delimiter, self._width = lines, delimiter, width
        self._grammar = _grammar(delimiter)
        # CSV has quotes; in a table with tabs or bars they may be ordinary characters.
        self._decided = width is None or delimiter not in "\t|"

    def read(self) -> Iterator[tuple[int, list[str] | str]]:
        """The rows, in order."""
        if not self._decided:
            yield from self._rows_without_quotes()
        if self._decided:
            yield from self._quoted_rows()

    def _rows_without_quotes(self) -> Iterator[tuple[int, list[str] | str]]:
        """Rows up to the first quote; all rows if quotes are ordinary characters."""
        literal = False
        for line in self._lines:
            if not literal and '"' in line:
                self._lines.put_back([line])
                if self._quotes_matter():
                    self._decided = True
                    return
                literal = True
                line = next(self._lines)
            text = line.rstrip("\r\n")
            if text:
                yield self._lines.number, text.split(self._delimiter)

    def _quotes_matter(self) -> bool:
        """Whether the program that wrote these lines quotes cells (pandas, spreadsheets) or never does (SST-2)."""
        lines, whole = self._lines.ahead(_SAMPLE)
        quoting = literal = at = 0
        while at < len(lines):
            end = at + 1
            quotes = lines[at].count('"')
            while quotes % 2 and end < len(lines):  # up to the line that closes the cell
                quotes += lines[end].count('"')
                end += 1
            if not quotes:
                at = end
            elif self._is_whole("".join(map(_hide_cr, lines[at:end]))):
                quoting, at = quoting + 1, end
            elif end == len(lines) and not whole and quotes % 2:  # the sample ends inside a cell
                break
            else:
                literal, at = literal + 1, at + 1
        return quoting > literal or not literal

    def _quoted_rows(self) -> Iterator[tuple[int, list[str] | str]]:
        csv.field_size_limit(_LONGEST_CELL)
        feed = _Feed(self._lines)
        reader = csv.reader(feed, delimiter=self._delimiter, strict=True)
        broken = False
        while True:
            start = self._lines.number + 1
            feed.taken.clear()
            cells: list[str] | None
            reason = "its quotes do not end where a cell ends"
            try:
                cells = next(reader, None)
                if cells is None:
                    return
            except csv.Error as error:
                cells, reason = None, str(error)
            if not cells and cells is not None:  # a blank line
                continue
            several = broken or len(feed.taken) > 1
            many = cells is not None and self._width is not None and any(cells[self._width :])
            whole = cells is not None and not many and (not several or self._is_surely_whole(cells, feed.taken))
            if not whole and (loose := self._read_loose(feed.taken)) is not None:
                cells = loose
            elif cells is None or (several and not whole):
                self._put_back(feed.taken[1:])
                if broken:
                    yield (
                        start,
                        "the line is not a whole row: it belongs to the broken one before it, or is broken itself",
                    )
                else:
                    yield start, f"the row is not valid CSV: {reason}; {_ADVICE}"
                broken = True
                continue
            elif len(feed.taken) == 1 and ' "' in feed.taken[0] and any(map(_LOOSE.match, cells)):
                cells = self._loose_cells(feed.taken[0].rstrip("\r\n")) or cells
            broken = False
            yield start, [cell.replace(_CR, "\r") for cell in cells] if _CR in "".join(feed.taken) else cells

    def _is_surely_whole(self, cells: list[str], taken: list[str]) -> bool:
        """Whether this is a row although a quote may be open: strictly RFC 4180, or one line with even quotes."""
        if len(taken) == 1 and taken[0].count('"') % 2 == 0 and len(cells) == self._width:
            return True
        return self._is_whole("".join(taken))

    def _put_back(self, lines: list[str]) -> None:
        self._lines.put_back([line.replace(_CR, "\r") for line in lines])

    def _is_whole(self, text: str) -> bool:
        """Whether these lines are a single valid row, with as many cells as the header."""
        text = text.rstrip("\r\n")
        if not self._grammar.row.fullmatch(text):
            return self._width is not None and self._loose_cells(text) is not None
        if self._width is None:
            return True
        cells = next(csv.reader([text], delimiter=self._delimiter), [])
        return len(cells) >= self._width and not any(cells[self._width :])

    def _read_loose(self, taken: list[str]) -> list[str] | None:
        """The cells of a row in a loose dialect (`_Grammar.loose`), whose lines are left in `taken`; else None."""
        end = quotes = size = 0
        while size < _SAMPLE:
            if end == len(taken):
                try:
                    taken.append(_hide_cr(next(self._lines)))
                except StopIteration:
                    break
            quotes += taken[end].count('"') - taken[end].count('\\"')
            size += len(taken[end])
            end += 1
            if quotes % 2 == 0:
                break
        cells = self._loose_cells("".join(taken[:end]).rstrip("\r\n"))
        if cells is not None:
            self._put_back(taken[end:])
            del taken[end:]
        return cells

    def _loose_cells(self, text: str) -> list[str] | None:
        """The cells of `1, "good, but long"` or of `"so \\"so\\""`, if there are as many as in the header."""
        if '"' not in text or not self._grammar.loose.fullmatch(text):
            return None
        cells = [match[1] for match in self._grammar.cell.finditer(text)]
        if self._width is not None and len(cells) != self._width:
            return None
        return [_unquote(cell) if '"' in cell else cell for cell in cells]


def _unquote(cell: str) -> str:
    inside = cell.strip(" ")[1:-1]
    return re.sub(r'""|\\"', '"', inside)
