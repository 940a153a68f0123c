"""CoNLL's column files -> records: a word on each line, a blank line between sentences."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from nopad.runtime.data.opening import Lines, not_decoded, undecodable
from nopad.runtime.data.table import DataSource, Item, Table
from nopad.runtime.errors import InputFileError

SUFFIXES = (".conll", ".conllu", ".iob", ".iob2", ".bio")
WORDS, TAGS = "tokens", "tags"
# The columns of Universal Dependencies (https://universaldependencies.org/format.html); FORM is the word.
_UNIVERSAL = ("id", WORDS, "lemma", "upos", "xpos", "feats", "head", "deprel", "deps", "misc")
_TAG = re.compile(r"O|[BIESLUM]-\S+")
_DOCUMENT = "-DOCSTART-"
_LOOKED_AT = 1 << 16  # characters


def is_column_lines(lines: Lines) -> bool:
    """Whether the text is one of words and tags: each of its first lines has as many cells, the last of them a tag."""
    ahead, whole = lines.ahead(_LOOKED_AT)
    rows = [_cells(line) for line in (ahead if whole else ahead[:-1]) if line.strip()]
    rows = [row for row in rows if row[0] != _DOCUMENT and not row[0].startswith("#")]
    widths, tags = {len(row) for row in rows}, {row[-1] for row in rows}
    return len(widths) == 1 and widths != {1} and all(map(_TAG.fullmatch, tags)) and tags != {"O"}


def open_column_lines(lines: Lines, source: DataSource, suffix: str) -> Table:
    """The sentences of a text, each a list per column: `tokens`, `column2` ..., `tags` unless `columns` names them.

    `text` is the words joined by blanks, unless a column has that name. Files of Universal Dependencies (`.conllu`)
    have their own names. Comments and -DOCSTART- lines are left out. A sentence with a line of another width is an
    error for that sentence only. Raises `InputFileError` if `columns` does not fit.
    """
    ahead, _ = lines.ahead(_LOOKED_AT)
    rows = [_cells(line) for line in ahead if line.strip()]
    width = next((len(row) for row in rows if row[0] != _DOCUMENT and not row[0].startswith("#")), 1)
    if source.columns and len(source.columns) != width:
        raise InputFileError(f"{source.path} has {width} columns, but --columns names {len(source.columns)}")
    universal = suffix == ".conllu" and width == len(_UNIVERSAL)
    between = tuple(f"column{number}" for number in range(2, width))
    names = source.columns or (_UNIVERSAL if universal else (WORDS, *between, TAGS)[:width])
    if width > 2 and not (source.columns or universal) and _counts_words(ahead):  # GermEval
        names = ("id", WORDS, *between[1:], TAGS)
    return Table(
        name=source.path,
        kind="CoNLL",
        items=_items(lines, names, universal, source.encoding),
        columns=(*names, *(["text"] if WORDS in names and "text" not in names else [])),
    )


def _counts_words(lines: Sequence[str]) -> bool:
    """Whether the first cells of each sentence are 1, 2, ... (or from 0): no words, but their numbers."""
    counts: list[list[str]] = [[]]
    for line in lines:
        first = _cells(line)[0]
        if not first:
            counts.append([])
        elif first != _DOCUMENT and not first.startswith("#"):
            counts[-1].append(first)
    return max(map(len, counts)) > 1 and any(
        all(own == [str(number) for number in range(start, start + len(own))] for own in counts) for start in (0, 1)
    )


def _items(lines: Lines, names: Sequence[str], universal: bool, encoding: str | None) -> Iterator[Item]:
    sentence: list[list[str]] = []
    first, wrong = 0, ""
    for line in _with_blank_end(lines):
        cells = _cells(line)
        if cells == [""] or cells[0] == _DOCUMENT:
            if sentence or wrong:
                yield first, wrong or _record(sentence, names)
            sentence, first, wrong = [], 0, ""
        elif _is_word(cells, len(names), universal, hashtag=cells[0] != "#" and "\t" in line):
            first = first or lines.number
            sentence.append(cells)
            if undecodable(line):
                wrong = wrong or not_decoded(encoding)
            elif len(cells) != len(names):
                wrong = wrong or f"line {lines.number} has {len(cells)} cells, others {len(names)}"


def _with_blank_end(lines: Lines) -> Iterator[str]:
    yield from lines
    yield ""


def _is_word(cells: list[str], width: int, universal: bool, *, hashtag: bool) -> bool:
    """Whether a line is a word of a sentence: no comment, or (universal) several words or none.

    `hashtag`: whether its first cell may be one, since a comment has no tabs, or a blank behind its `#`.
    """
    if cells[0].startswith("#") and not (len(cells) == width and (_TAG.fullmatch(cells[-1]) or hashtag)):
        return False
    return not universal or cells[0].isdecimal()


def _record(sentence: Sequence[Sequence[str]], names: Sequence[str]) -> dict[str, object]:
    columns = {name: list(cells) for name, cells in zip(names, zip(*sentence, strict=True), strict=True)}
    return {"text": " ".join(columns[WORDS]), **columns} if WORDS in columns else dict(columns)


def _cells(line: str) -> list[str]:
    """Cells between tabs, or (a line without tabs) blanks; words may hold blanks of other kinds."""
    line = line.strip(" \t\r\n")
    return line.split("\t") if "\t" in line else re.split(" +", line)
