"""Reading texts with marked entities, for a tagger: a row that cannot be used fails alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple

from nopad.runtime.data.fields import MISSING, TEXT_COLUMNS, Field
from nopad.runtime.data.labelled import BadRow
from nopad.runtime.data.labels import label_finder
from nopad.runtime.data.records import open_table
from nopad.runtime.data.table import DataSource
from nopad.runtime.data.tagged import (
    SPAN_COLUMNS,
    TAG_COLUMNS,
    WORD_COLUMNS,
    check_tags,
    joined_words,
    marked_entities,
    marked_spans,
    tagged_entities,
)
from nopad.runtime.entities import read_tags


class Span(NamedTuple):
    """An entity: its kind, its first character, and the one after its last."""

    kind: str
    start: int
    end: int


@dataclass(frozen=True, kw_only=True)
class TaggedRows:
    """Texts with their entities, numbers and kept columns, and the rows that were left out."""

    texts: list[str]
    entities: list[tuple[Span, ...]]
    lines: list[int]
    kept: list[Mapping[str, Any]]
    bad: list[BadRow]


class _UnknownKind(ValueError):
    def __init__(self, kind: str, known: Sequence[str]) -> None:
        super().__init__(f"{kind!r} is not among {', '.join(known)}")
        self.kind = kind


def kinds_of(labels: Sequence[str]) -> tuple[str, ...]:
    """The kinds of entities among a tagger's labels, in their order."""
    return tuple(dict.fromkeys(tag.kind for tag in read_tags(tuple(labels)) if tag is not None))


def read_tagged_rows(
    source: DataSource,
    labels: Sequence[str],
    *,
    text_field: str | None = None,
    label_field: str | None = None,
    limit: int | None = None,
    keep: Sequence[str] = (),
) -> TaggedRows:
    """Lists of words and tags, CoNLL files, or texts and their entities, as `read_labelled` reads them for a tagger.

    `labels` are the model's: a tag that is a number is the index of one, unless the data names its numbers. Rows with a
    tag or a kind of entity that the model does not know are left out. Raises `InputFileError`.
    """
    found = TaggedRows(texts=[], entities=[], lines=[], kept=[], bad=[])
    wanted = [text_field] if text_field else [*WORD_COLUMNS, *TEXT_COLUMNS]
    with open_table(source, wanted=wanted) as table:
        texts = Field(table, text_field, (*WORD_COLUMNS, *TEXT_COLUMNS), "--text-field")
        of_words = any(isinstance(texts.value(record), list) for record in table.sample)
        true = Field(table, label_field, TAG_COLUMNS if of_words else SPAN_COLUMNS, "--label-field")
        columns = {name: Field(table, name, (), "--slice-field") for name in keep}
        names = table.class_names.get(str(true.name), ())
        for line, record in islice(table.items, limit):
            try:
                if isinstance(record, str):
                    raise ValueError(record)
                read = _of_words if of_words else _of_text
                text, entities = read(texts.value(record), true.value(record), tuple(labels), names)
                kept = {name: column.value(record) for name, column in columns.items()}
            except ValueError as error:
                kind = error.kind if isinstance(error, _UnknownKind) else None
                found.bad.append(BadRow(line, table.place(line), str(error), kind))
                continue
            found.texts.append(text)
            found.entities.append(tuple(sorted(entities, key=lambda span: span.start)))
            found.lines.append(line)
            found.kept.append({name: None if value is MISSING else value for name, value in kept.items()})
    return found


def _of_words(words: Any, tags: Any, labels: tuple[str, ...], names: Sequence[str]) -> tuple[str, list[Span]]:
    """Text and entities of a list of words; `names`: of tags that are numbers. Raises `ValueError`."""
    text, places = joined_words(None if words is MISSING else words)
    check_tags(places, tags)
    if not text.strip():
        raise ValueError("no text")
    known = [names[tag] if isinstance(tag, int) and 0 <= tag < len(names) else tag for tag in tags]
    find = label_finder(labels)
    for tag in known:
        if find(tag) is None:
            raise _UnknownKind(str(tag), labels)
    return text, [Span(*entity) for entity in tagged_entities(places, known, labels)]


def _of_text(text: Any, marked: Any, labels: tuple[str, ...], names: Sequence[str]) -> tuple[str, list[Span]]:
    """Text and entities of a text whose entities are marked; none for null. Raises `ValueError`."""
    if not isinstance(text, str) or not text.strip():
        raise ValueError("no text")
    if marked is MISSING:
        raise ValueError("no entities; name their column with --label-field")
    kinds = kinds_of(labels)
    for _, _, kind in marked_spans(text, marked):
        if kind not in kinds:
            raise _UnknownKind(kind, kinds)
    return text, [Span(*entity) for entity in marked_entities(text, marked, labels)]
