"""Rows of several texts: pairs, with negatives or not, and scored pairs for embeddings; passages of queries to rerank.

Columns are found here, and cells become texts; `nopad.training.tasks` knows what is learned from them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import datasets
import numpy as np

from nopad.model.checkpoint.save_pooling import POOLINGS
from nopad.runtime.data.fields import LABEL_COLUMNS, find_column, plain_name
from nopad.runtime.data.labels import listed, split_columns
from nopad.runtime.errors import UsageError
from nopad.training.bad_rows import BadRows, OnBadRow, OnDuplicate, checked_text
from nopad.training.data import TrainingData
from nopad.training.errors import DataError
from nopad.training.labels import finite_number
from nopad.training.recipe import EVAL_FRACTION, Recipe
from nopad.training.repeats import BETWEEN, LabelledText
from nopad.training.rows_on_disk import as_dataset, column_of
from nopad.training.sources import Rows, Sources
from nopad.training.splits import ONE_GROUP, divide, group_column, read_parts
from nopad.training.tasks.embeddings import DOCUMENT, QUERY, Pairs, ScoredPairs
from nopad.training.tasks.rerank import LabelledPairs, Rerank

# The names that data sets for sentence-transformers have, in this order.
FIRST = ("anchor", "query", "question", "sentence1", "sentence_1", "premise", "text1", "sentence_A")
SECOND = ("positive", "answer", "passage", "document", "response", "sentence2", "sentence_2", "hypothesis", "text2",
          "sentence_B", "context", "text", "positives", "answers")  # fmt: skip
_NEGATIVE = re.compile(r"(hard_)?negatives?(_\d+)?")
_LIST = re.compile(r"""\s*\[\s*(['"]).*\1\s*\]\s*""", re.DOTALL)
SCORES = ("score", "similarity", "similarity_score", "relatedness_score", "label", "labels")


@dataclass(frozen=True, kw_only=True)
class _Columns:
    """Which columns hold what; a cell of the second or of a negative may be a list of texts."""

    first: str
    second: str
    negatives: tuple[str, ...] = ()
    number: str | None = None  # of a score or a label
    group: str | None = None  # of --split-group

    @property
    def names(self) -> str:
        return ", ".join(filter(None, (self.first, self.second, *self.negatives, self.number)))


@dataclass(frozen=True, kw_only=True)
class _Row:
    """The texts of a row, at least two; several second ones are those of a list."""

    first: str
    seconds: list[str]
    negatives: list[str]
    number: float | None
    place: str
    group: Any


def load_pairs(
    source: Sources,
    evaluation: Sources | None = None,
    *,
    text_column: str | None = None,
    text_pair_column: str | None = None,
    label_column: str | None = None,
    pooling: str | None = None,
    matryoshka: Sequence[int] = (),
    prompts: Mapping[str, str] | None = None,
    teacher_vectors: bool = False,
    eval_fraction: float = EVAL_FRACTION,
    split_group: str | None = None,
    duplicates: OnDuplicate = "keep",
    bad_rows: OnBadRow = "refuse",
    seed: int = Recipe.seed,
) -> TrainingData:
    """Rows for embeddings: pairs with negatives where there are columns of them, else scored pairs or pairs.

    `text_column` and `text_pair_column` name two or more columns, with commas between several: the third and all behind
    it are negatives; then a column of scores counts only if `label_column` names it. A list of positives makes several
    rows. `prompts`: by name (`nopad.training.tasks.embeddings`), else the model's own. `teacher_vectors`: the vectors
    of a teacher are learned, not their neighbours.
    Raises `DataError`, and `UsageError` for a bad `pooling`, `matryoshka` or `prompts`.
    """
    _check_options(pooling, matryoshka, prompts)
    bad, held_bad = BadRows(bad_rows, "training"), BadRows(bad_rows, "evaluation")
    rows, held_rows = read_parts(source, evaluation, wanted=FIRST, bad_rows=(bad, held_bad))
    columns = _text_columns(rows, text_column, text_pair_column)
    known_names = not (text_column or text_pair_column)
    unscored = columns.negatives or not known_names
    score = label_column or (None if unscored else _first(rows.columns, SCORES))
    unused = columns.negatives if score is not None else ()
    if score is not None:
        columns = replace(columns, negatives=(), number=rows.column(score, (), "--label-column"))
        if len(classes := rows.class_names.get(columns.number or "", ())) > 2:
            raise DataError(
                f"column {score!r} holds classes ({listed(classes)}), not scores: give a number that is higher for "
                "pairs that are more alike, or name the columns of pairs alone with --text-column"
            )
    group = group_column(rows, held_rows, split_group)
    found, remarks = _read(rows, replace(columns, group=group), "training", bad)
    held: Sequence[_Row] | None = None
    if held_rows is not None:
        held, held_remarks = _read(held_rows, _provided(held_rows, columns, known_names), "evaluation", held_bad)
        remarks += held_remarks
    found, held, repeats = divide(
        found,
        held,
        as_text=_as_text,
        eval_fraction=eval_fraction,
        seed=seed,
        groups=(row.group for row in found) if group is not None else None,
        duplicates=duplicates,
        near=False,  # pairs often share one of their texts
    )
    train, test = _pairs(found), _pairs(held)
    if unused:
        remarks.append(f"not used: {', '.join(unused)} (a scored pair has no negative)")
    for part, name in ((train, "training"), (test, "evaluation")):
        if score is not None and np.ptp(column_of(part, "target")) == 0:
            raise DataError(f"all rows of the {name} data have one score in column {score!r}: there is no order")
    kind = ScoredPairs if score is not None else Pairs
    return TrainingData(
        train=train,
        evaluation=test,
        task=kind(pooling=pooling, matryoshka=tuple(matryoshka), prompts=prompts, teacher_vectors=teacher_vectors),
        labels=(),
        problem_type=None,
        summary=_summary(train, columns),
        remarks=(*remarks, *bad.remarks(), *held_bad.remarks(), *repeats),
    )


def load_passages(
    source: Sources,
    evaluation: Sources | None = None,
    *,
    text_column: str | None = None,
    text_pair_column: str | None = None,
    label_column: str | None = None,
    eval_fraction: float = EVAL_FRACTION,
    split_group: str | None = None,
    duplicates: OnDuplicate = "keep",
    bad_rows: OnBadRow = "refuse",
    seed: int = Recipe.seed,
) -> TrainingData:
    """Rows of query, passage and label from 0 to 1 for reranking; columns are named as in `load_pairs`.

    Or rows of a query, its answers and negatives, where there are columns of them and `label_column` names none: each
    of their texts is a passage, with the label 1 or 0. Rows of one query stay together where a fraction is held out.
    Raises `DataError`.
    """
    bad, held_bad = BadRows(bad_rows, "training"), BadRows(bad_rows, "evaluation")
    rows, held_rows = read_parts(source, evaluation, wanted=FIRST, bad_rows=(bad, held_bad))
    columns = _text_columns(rows, text_column, text_pair_column)
    known_names = not (text_column or text_pair_column)
    if label_column or not columns.negatives:
        columns = replace(columns, negatives=(), number=rows.column(label_column, LABEL_COLUMNS, "--label-column"))
    group = group_column(rows, held_rows, split_group)
    found, remarks = _read(rows, replace(columns, group=group), "training", bad, rerank=True)
    held: Sequence[_Row] | None = None
    if held_rows is not None:
        columns_there = _provided(held_rows, columns, known_names)
        held, held_remarks = _read(held_rows, columns_there, "evaluation", held_bad, rerank=True)
        remarks += held_remarks
    found, held, repeats = divide(
        found,
        held,
        as_text=_as_text,
        eval_fraction=eval_fraction,
        seed=seed,
        groups=(row.first if group is None else row.group for row in found),
        one_group=ONE_GROUP if group is not None else _one_query(columns.first),
        duplicates=duplicates,
        conflicts=columns.number is not None,
        near=False,
    )
    train, test = _passages(found), _passages(held)
    labels = column_of(train, "target")
    if np.ptp(labels) == 0:
        remarks.append(f"all passages of the training data have the label {labels[0]:g}: nothing tells them apart")
    return TrainingData(
        train=train,
        evaluation=test,
        task=Rerank() if _has_rankings(test) else LabelledPairs(),
        labels=("LABEL_0",),  # as sentence-transformers names the score
        problem_type=None,
        summary=f"{columns.names}: {column_of(train, 'query_id').max() + 1:,} queries, {labels.mean():.0%} of the "
        f"{len(labels):,} passages answer theirs",
        remarks=(*remarks, *bad.remarks(), *held_bad.remarks(), *repeats),
    )


def _one_query(column: str) -> str:
    return (
        f"all rows of the training data have the same query (column {column!r}), and rows of one query are not "
        "divided, so none can be held out to evaluate on: give rows of other queries with --eval, or more queries; if "
        "the queries are in another column, name it and that of the passages with --text-column QUERY,PASSAGE"
    )


def _check_options(pooling: str | None, matryoshka: Sequence[int], prompts: Mapping[str, str] | None) -> None:
    if pooling not in (None, *POOLINGS):
        raise UsageError(f"--pooling {pooling!r} is unknown; known: {', '.join(POOLINGS)}")
    if any(size < 1 for size in matryoshka) or len(set(matryoshka)) < len(matryoshka):
        raise UsageError(f"--matryoshka must name sizes, each once, got {','.join(map(str, matryoshka))}")
    known = (*QUERY, *DOCUMENT)
    if not set(prompts or ()) <= set(known):
        raise UsageError(f"--prompts may name {', '.join(known)}, got {', '.join(prompts or ())}")


def _first(columns: Sequence[str], names: Sequence[str]) -> str | None:
    try:
        return next((found for name in names if (found := find_column(columns, name)) is not None), None)
    except ValueError as error:
        raise DataError(f"the training data has several such columns: {error}; name one with --label-column") from None


def _text_columns(rows: Rows, first: str | None, second: str | None) -> _Columns:
    """The columns that the options name, or those with known names."""
    option, names = "--text-column", ",".join(filter(None, (first, second)))
    if names:
        chosen = split_columns(names, rows.columns)
        if len(chosen) < 2 or len(set(chosen)) < len(chosen):
            raise UsageError(
                "--text-column (and --text-pair-column) must name two or more columns with commas between them, got "
                f"{names!r}"
            )
        one, other, *others = (rows.column(name, (), option) for name in chosen)
        return _Columns(first=one, second=other, negatives=tuple(others))
    one, other = (rows.column(None, known, option) for known in (FIRST, SECOND))
    return _Columns(first=one, second=other, negatives=_negatives(rows))


def _negatives(rows: Rows) -> tuple[str, ...]:
    found = tuple(name for name in rows.columns if _NEGATIVE.fullmatch(plain_name(name)))
    if twice := rows.repeated.intersection(found):
        raise DataError(f"the data has several columns {min(twice)!r}; name them apart: negative_1, negative_2")
    return found


def _provided(held: Rows, columns: _Columns, known_names: bool) -> _Columns:
    """The columns in evaluation data: the same, but for negatives with known names, of which it may have others."""
    texts = (columns.first, columns.second, *(() if known_names else columns.negatives))
    for name in texts:
        held.provide(name, "--text-column")
    if columns.number is not None:
        held.provide(columns.number, "--label-column")
    return replace(columns, negatives=_negatives(held)) if known_names and columns.negatives else columns


def _read(
    rows: Rows, columns: _Columns, part: str, bad: BadRows, *, rerank: bool = False
) -> tuple[Sequence[_Row], list[str]]:
    """The rows that have a first and a second text, and remarks.

    To rerank, numbers are from 0 to 1, and a row may have negatives alone.
    """

    def make(record: dict[str, Any], place: str) -> _Row | None:
        first = _cell(rows, record, columns.first, several=False)
        seconds = _cell(rows, record, columns.second, several=columns.number is None)
        negatives = [text for name in columns.negatives for text in _cell(rows, record, name)]
        if not first or not (seconds or (rerank and negatives)):
            return None
        number = None if columns.number is None else _number(record.get(columns.number), columns.number, unit=rerank)
        group = record.get(columns.group) if columns.group is not None else None
        return _Row(first=first[0], seconds=seconds, negatives=negatives, number=number, place=place, group=group)

    found = rows.usable(make, bad)
    names = f"{columns.first}, {columns.second}"
    if not found:
        reasons = "".join(f"; {remark}" for remark in bad.remarks())
        raise DataError(f"the {part} data has no row with texts in the columns {names}{reasons}")
    return found, [*rows.remarks, *bad.remark_on_blank(len(rows), f"lack one of {names}")]


def _as_text(row: _Row) -> LabelledText:
    """A row repeats another if all its texts are the same."""
    return LabelledText(text=BETWEEN.join([row.first, *row.seconds, *row.negatives]), label=row.number, place=row.place)


def _cell(rows: Rows, record: dict[str, Any], column: str, *, several: bool = True) -> list[str]:
    """The texts of a cell: itself, or those of a list. Raises `ValueError` for what cannot be taken."""
    value = rows.text(record, column)
    if several and isinstance(value, str) and _LIST.fullmatch(value):
        raise ValueError(f"column {column!r} holds a list written as a text, {value!r:.80}; give it as JSON or Parquet")
    cells = value if isinstance(value, list) else [value]
    texts = [text for cell in cells if (text := checked_text(cell, column)) is not None]
    if len(texts) > 1 and not several:
        raise ValueError(f"column {column!r} holds a list of {len(texts)} texts, and one is needed")
    return texts


def _number(value: Any, column: str, *, unit: bool) -> float:
    """Raises `ValueError`."""
    try:
        found = finite_number(value)
    except (ValueError, OverflowError):
        raise ValueError(f"column {column!r}: {value!r:.80} is not a number") from None
    if unit and not 0 <= found <= 1:
        raise ValueError(f"column {column!r}: {value!r:.80} is not from 0 (no answer) to 1 (an answer)")
    return found


def _pairs(rows: Sequence[_Row]) -> Any:
    """`texts` of each row (first, second, negatives) and, of scored pairs, `target`."""
    target = {"target": datasets.Value("float64")} if rows[0].number is not None else {}
    return as_dataset(
        (
            {"texts": [row.first, second, *row.negatives], "target": row.number}
            for row in rows
            for second in row.seconds
        ),
        {"texts": datasets.Sequence(datasets.Value("string")), **target},
    )


def _passages(rows: Sequence[_Row]) -> Any:
    """`query`, `passage`, `target`, and `query_id`: equal queries have equal numbers, from 0 without gaps."""
    numbers: dict[str, int] = {}
    text = datasets.Value("string")
    return as_dataset(
        (
            {
                "query": row.first,
                "passage": passage,
                "target": target if row.number is None else row.number,
                "query_id": numbers.setdefault(row.first, len(numbers)),
            }
            for row in rows
            for target, passages in ((1.0, row.seconds), (0.0, row.negatives))
            for passage in passages
        ),
        {"query": text, "passage": text, "target": datasets.Value("float64"), "query_id": datasets.Value("int64")},
    )


def _summary(rows: Any, columns: _Columns) -> str:
    if columns.number is not None:
        return f"scored pairs: {columns.names}"
    counts = np.concatenate([chunk.value_lengths() for chunk in rows.data.column("texts").chunks]) - 2
    least, most = counts.min(), counts.max()
    negatives = f"{most}" if least == most else f"{least} to {most}"
    return f"pairs{f' with {negatives} negatives each' if most else ''}: {columns.names}"


def _has_rankings(rows: Any) -> bool:
    """Whether most queries that have an answer have other passages to rank, too."""
    numbers = column_of(rows, "query_id")
    answered = np.bincount(numbers, weights=column_of(rows, "target") >= 0.5) > 0
    passages = np.bincount(numbers)[answered]
    return bool((passages > 1).mean() > 0.5) if len(passages) else False
