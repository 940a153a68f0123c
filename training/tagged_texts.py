"""Training data whose words have tags: lists of words and tags, CoNLL files, or texts with marked entities."""

from __future__ import annotations

import re
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import datasets

from nopad.runtime.data.fields import TEXT_COLUMNS
from nopad.runtime.data.labels import label_finder, listed
from nopad.runtime.data.tagged import (
    SPAN_COLUMNS,
    TAG_COLUMNS,
    WORD_COLUMNS,
    check_tags,
    joined_words,
    marked_spans,
)
from nopad.runtime.entities import read_tags, spans
from nopad.training.bad_rows import BadRows, OnBadRow, OnDuplicate, has_half_a_character
from nopad.training.data import TrainingData
from nopad.training.errors import DataError
from nopad.training.recipe import EVAL_FRACTION, Recipe
from nopad.training.repeats import LabelledText
from nopad.training.rows_on_disk import as_dataset, chosen
from nopad.training.sources import Rows, Sources
from nopad.training.splits import divide, group_column, read_parts
from nopad.training.tasks.token_labels import TokenLabels

LABEL_ALL_TOKENS = True
_OUTSIDE = "O"
_NUMBERED = "LABEL_{}"  # transformers' names of numbers
_WORD = re.compile(r"\w+|[^\w\s]")


@dataclass(frozen=True, kw_only=True)
class _Tagged:
    """A text, its words (start and end, in characters) and their tags."""

    text: str
    words: list[tuple[int, int]]
    tags: list[Any]
    place: str
    group: Any = None


def load_tagged(
    source: Sources,
    evaluation: Sources | None = None,
    *,
    text_column: str | None = None,
    label_column: str | None = None,
    labels: Sequence[str] | None = None,
    eval_fraction: float = EVAL_FRACTION,
    split_group: str | None = None,
    duplicates: OnDuplicate = "keep",
    bad_rows: OnBadRow = "refuse",
    seed: int = Recipe.seed,
    label_all_tokens: bool = LABEL_ALL_TOKENS,
) -> TrainingData:
    """Read `source` (and `evaluation`, or a split of it, or a held-out fraction) and encode the tags.

    `text_column` is that of the words or of the text, `label_column` that of the tags or of the marked entities.
    The data has columns `text`, `words` and `target`, as `TokenLabels.encode` takes them. Raises `DataError`.
    """
    bad, held_bad = BadRows(bad_rows, "training"), BadRows(bad_rows, "evaluation")
    wanted = [text_column] if text_column else (*WORD_COLUMNS, *TEXT_COLUMNS)
    rows, held_rows = read_parts(source, evaluation, wanted=wanted, bad_rows=(bad, held_bad))
    group = group_column(rows, held_rows, split_group)
    examples, names, remarks = _examples(rows, text_column, label_column, "training", bad, group)
    held: Sequence[_Tagged] | None = None
    if held_rows is not None:
        held, _, held_remarks = _examples(held_rows, text_column, label_column, "evaluation", held_bad)
        remarks += [*held_rows.remarks, *held_remarks]
    given = tuple(labels or names)
    labels = given or _label_names(tag for example in examples for tag in example.tags)
    if len(labels) < 2:
        raise DataError(
            f"all words of the training data have one tag, {', '.join(labels)}: there is nothing to tell apart"
        )
    find = label_finder(labels, places=bool(given) or labels[0] == _NUMBERED.format(0))
    examples = _with_known_tags(examples, labels, find, "training", bad)
    if held is not None:
        held = _with_known_tags(held, labels, find, "evaluation", held_bad)
    examples, held, repeats = divide(
        examples,
        held,
        as_text=lambda row: LabelledText(text=row.text, label=row.tags, place=row.place),
        eval_fraction=eval_fraction,
        seed=seed,
        groups=(example.group for example in examples) if group is not None else None,
        duplicates=duplicates,
        conflicts=True,
    )
    train, test = _encoded(examples, find), _encoded(held, find)
    summary, scheme_remarks = _describe(labels, train["target"])
    return TrainingData(
        train=train,
        evaluation=test,
        task=TokenLabels(labels=labels, label_all_tokens=label_all_tokens),
        labels=labels,
        problem_type=None,
        summary=summary,
        remarks=(*rows.remarks, *remarks, *bad.remarks(), *held_bad.remarks(), *repeats, *scheme_remarks),
    )


def _examples(
    rows: Rows, text_column: str | None, label_column: str | None, part: str, bad: BadRows, group: str | None = None
) -> tuple[Sequence[_Tagged], tuple[str, ...], list[str]]:
    """The rows that have words, the names that the data has for its tags, and a remark on the rows left out."""
    column = rows.column(text_column, (*WORD_COLUMNS, *TEXT_COLUMNS), "--text-column", what=f"{part} data")
    of_words = any(isinstance(rows.row(index)[0].get(column), list) for index in range(len(rows)))
    known = TAG_COLUMNS if of_words else SPAN_COLUMNS
    tags = rows.column(label_column, known, "--label-column", what=f"{part} data")
    names = rows.class_names.get(tags, ()) if of_words else ()
    unmarked: set[str] = set()

    def make(record: dict[str, Any], place: str) -> _Tagged | None:
        value = record.get(column)
        if not value or (isinstance(value, str) and not value.strip()):
            return None
        read = _from_words if of_words else _from_spans
        try:
            example = read(value, record.get(tags), place)
        except ValueError as error:
            raise ValueError(f"columns {column!r} and {tags!r}: {error}") from None
        if record.get(tags) is None:
            unmarked.add(place)
        return replace(example, group=record.get(group)) if group is not None else example

    examples = rows.usable(make, bad)
    if not examples:
        raise DataError(f"the {part} data has no row with {'words' if of_words else 'text'} in column {column!r}")
    remarks = bad.remark_on_blank(len(rows), f"have nothing in column {column!r}")
    if unmarked:
        remarks.append(
            f"{len(unmarked):,} of {len(rows):,} rows of the {part} data have nothing in column {tags!r}: taken as "
            "texts without entities"
        )
    return examples, names, remarks


def _from_words(words: Any, tags: Any, place: str) -> _Tagged:
    """Words with one space between them, which is the text that serving would get. Raises `ValueError`."""
    text, found = joined_words(words)
    check_tags(words, tags)
    for word, tag in zip(words, tags, strict=True):
        if not isinstance(tag, str | int) or (isinstance(tag, str) and not tag.strip()):
            raise ValueError(f"the tag of {word!r:.40} is {tag!r:.40}; a tag is a name or a whole number")
    _check_unicode(text)
    _check_unicode("".join(map(str, tags)))
    return _Tagged(text=text, words=found, tags=tags, place=place)


def _from_spans(text: Any, entities: Any, place: str) -> _Tagged:
    """A text and its marked entities; its words, cut where entities begin and end, have tags of IOB2.

    Raises `ValueError`.
    """
    if not isinstance(text, str):
        raise ValueError("the text is not a text")
    _check_unicode(text)
    words, tags, at = [], [], 0
    for start, end, label in [*marked_spans(text, entities), (len(text), len(text), "")]:
        outside = [match.span() for match in _WORD.finditer(text, at, start)]
        inside = [match.span() for match in _WORD.finditer(text, start, end)]
        if not inside and label:
            raise ValueError(f"the entity from {start} to {end} ({label}) holds no word")
        words += outside + inside
        tags += [_OUTSIDE] * len(outside) + [f"{'I' if i else 'B'}-{label}" for i in range(len(inside))]
        at = end
    return _Tagged(text=text, words=words, tags=tags, place=place)


def _check_unicode(text: str) -> None:
    if has_half_a_character(text):
        raise ValueError("half a character (a lone surrogate); mend it")


def _label_names(tags: Iterator[Any]) -> tuple[str, ...]:
    """Names of the tags: O first, the others by kind; numbers get transformers' names.

    A kind of entity has every tag of the scheme, also such as did not occur: a long entity may be yet to come.
    """
    different = set(tags)
    numbers = {tag for tag in different if isinstance(tag, int)}
    if numbers and numbers != different:
        raise DataError(
            f"tags are numbers ({listed(sorted(numbers))}) in some rows of the training data and names "
            f"({listed(sorted(different - numbers))}) in others: write them alike, or name the numbers with --labels"
        )
    if numbers:
        return tuple(_NUMBERED.format(index) for index in range(max(numbers) + 1))
    names = {str(tag) for tag in different}
    tagged = [(name, tag.kind) for name, tag in zip(names, read_tags(tuple(names)), strict=True) if tag and tag.place]
    names |= {name.removesuffix(kind) + other for name, kind in tagged for _, other in tagged}
    return tuple(sorted(names, key=lambda name: (name != _OUTSIDE, name[2:], name)))


def _with_known_tags(
    examples: Sequence[_Tagged], labels: Sequence[str], find: Callable[[Any], int | None], part: str, bad: BadRows
) -> Sequence[_Tagged]:
    """The examples without those that have a tag which is not among the labels: bad rows. Raises `DataError`."""
    kept = array("q")
    unknown: Counter[str] = Counter()
    place = ""
    for index, example in enumerate(examples):
        wrong = [str(tag) for tag in example.tags if find(tag) is None]
        if not wrong:
            kept.append(index)
        elif bad.skipped:
            bad.add(example.place, f"tag {wrong[0]!r} is not among {listed(labels)}")
        else:
            place = place or example.place
            unknown.update(wrong)
    if unknown:
        counts = listed([f"{tag!r} ({count:,} words)" for tag, count in unknown.most_common()])
        raise DataError(f"{place}: the {part} data has tags that are not among {listed(labels)}: {counts}")
    if not kept:
        raise DataError(f"the {part} data has no row left: {'; '.join(bad.remarks())}")
    return chosen(examples, kept)


def _encoded(examples: Sequence[_Tagged], find: Callable[[Any], int | None]) -> Any:
    number = datasets.Value("int64")
    return as_dataset(
        ({"text": row.text, "words": row.words, "target": [find(tag) for tag in row.tags]} for row in examples),
        {
            "text": datasets.Value("string"),
            "words": datasets.Sequence(datasets.Sequence(number)),
            "target": datasets.Sequence(number),
        },
    )


def _describe(labels: tuple[str, ...], sentences: Sequence[Sequence[int]]) -> tuple[str, list[str]]:
    """The tag scheme and the entities of each kind; a remark on those that do not begin as the scheme has it."""
    tags = read_tags(labels)
    kinds: Counter[str] = Counter()
    begun: Counter[str] = Counter()  # entities by the place of their first tag
    needed = True  # whether B only stands where it must, after an entity of the same kind
    for sentence in sentences:
        found = spans([tags[label] for label in sentence])
        ends = {(kind, last) for kind, _, last in found}
        for kind, first, _ in found:
            tag = tags[sentence[first]]
            kinds[kind] += 1
            begun[tag.place if tag else ""] += 1
            needed &= tag is None or tag.place != "B" or (kind, first - 1) in ends
    places = {tag.place for tag in tags if tag}
    scheme = (
        "BIOES"
        if places & {"E", "S"}
        else "IOB1"
        if begun["I"] and needed
        else "IOB2"
        if "B" in places
        else "no scheme"
    )
    summary = f"{len(labels)} tags ({scheme}); {listed([f'{kind} ({count:,})' for kind, count in kinds.most_common()])}"
    stray = begun["I"] + begun["E"] if scheme in ("BIOES", "IOB2") else 0
    remark = f"{stray:,} of {kinds.total():,} entities do not begin as {scheme} has it: taken as entities all the same"
    return summary, [remark] if stray else []
