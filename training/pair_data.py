"""Rows of several texts: pairs, triplets and scored pairs for embeddings; query, passage and label for reranking."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import datasets
import numpy as np

from nopad.model.checkpoint.save_pooling import POOLINGS
from nopad.runtime.data.fields import LABEL_COLUMNS, find_column
from nopad.runtime.data.labels import split_columns
from nopad.runtime.errors import UsageError
from nopad.training.bad_rows import BadRows, OnBadRow, has_half_a_character
from nopad.training.data import TrainingData
from nopad.training.errors import DataError
from nopad.training.labels import finite_number
from nopad.training.recipe import EVAL_FRACTION, Recipe
from nopad.training.sources import Rows, Sources
from nopad.training.splits import hold_out, read_parts
from nopad.training.tasks.embeddings import Pairs, ScoredPairs
from nopad.training.tasks.rerank import LabelledPairs, Rerank

# The names that data sets for sentence-transformers have, in this order.
FIRST = ("anchor", "query", "question", "sentence1", "sentence_1", "premise", "text1", "sentence_A")
SECOND = ("positive", "answer", "passage", "document", "response", "sentence2", "sentence_2", "hypothesis", "text2",
          "sentence_B", "context", "text")  # fmt: skip
THIRD = ("negative", "hard_negative", "negative_1", "negative_0")
_NEGATIVE = re.compile(r"(hard_)?negative(_\d+)?")
SCORES = ("score", "similarity", "similarity_score", "relatedness_score", "label", "labels")


def load_pairs(
    source: Sources,
    evaluation: Sources | None = None,
    *,
    text_column: str | None = None,
    text_pair_column: str | None = None,
    label_column: str | None = None,
    pooling: str | None = None,
    matryoshka: Sequence[int] = (),
    eval_fraction: float = EVAL_FRACTION,
    bad_rows: OnBadRow = "refuse",
    seed: int = Recipe.seed,
) -> TrainingData:
    """Rows for embeddings: triplets where there is a column of negatives, else scored pairs or pairs.

    `text_column` and `text_pair_column` name two or three columns, with commas between several; then a column of
    scores counts only if `label_column` names it.
    Raises `DataError`, and `UsageError` for a bad `pooling` or `matryoshka`.
    """
    if pooling not in (None, *POOLINGS):
        raise UsageError(f"--pooling {pooling!r} is unknown; known: {', '.join(POOLINGS)}")
    if any(size < 1 for size in matryoshka) or len(set(matryoshka)) < len(matryoshka):
        raise UsageError(f"--matryoshka must name sizes, each once, got {','.join(map(str, matryoshka))}")
    bad, held_bad = BadRows(bad_rows, "training"), BadRows(bad_rows, "evaluation")
    rows, held_rows = read_parts(source, evaluation, wanted=FIRST, bad_rows=(bad, held_bad))
    columns = _text_columns(rows, text_column, text_pair_column, most=3)
    known_names = not (text_column or text_pair_column)
    score = label_column or (_first(rows.columns, SCORES) if known_names and len(columns) == 2 else None)
    if score is not None:
        columns, score = columns[:2], rows.column(score, (), "--label-column")
    unused = [name for name in rows.columns if _NEGATIVE.fullmatch(name.lower()) and name not in columns]
    train, remarks = _read(rows, columns, score, "training", bad)
    if held_rows is not None:
        test, held_remarks = _read(held_rows, columns, score, "evaluation", held_bad)
        remarks += held_remarks
    else:
        train, test = hold_out(train, eval_fraction, seed)
    if unused:
        kind = "a scored pair has no negative" if score else "one negative in a row is used"
        remarks.append(f"not used: {', '.join(unused)} ({kind})")
    options: dict[str, Any] = {"pooling": pooling, "matryoshka": tuple(matryoshka)}
    for part, name in ((train, "training"), (test, "evaluation")):
        if score is not None and len(set(part["target"])) < 2:
            raise DataError(f"all rows of the {name} data have one score in column {score!r}: there is no order")
    texts = ", ".join(columns)
    return TrainingData(
        train=train,
        evaluation=test,
        task=ScoredPairs(**options) if score is not None else Pairs(**options),
        labels=(),
        problem_type=None,
        summary=f"scored pairs: {texts}, {score}" if score else f"{('pairs', 'triplets')[len(columns) - 2]}: {texts}",
        remarks=(*remarks, *bad.remarks(), *held_bad.remarks()),
    )


def load_passages(
    source: Sources,
    evaluation: Sources | None = None,
    *,
    text_column: str | None = None,
    text_pair_column: str | None = None,
    label_column: str | None = None,
    eval_fraction: float = EVAL_FRACTION,
    bad_rows: OnBadRow = "refuse",
    seed: int = Recipe.seed,
) -> TrainingData:
    """Rows of query, passage and label from 0 to 1 for reranking; columns are named as in `load_pairs`.

    Rows of one query stay together where a fraction is held out. Raises `DataError`.
    """
    bad, held_bad = BadRows(bad_rows, "training"), BadRows(bad_rows, "evaluation")
    rows, held_rows = read_parts(source, evaluation, wanted=FIRST, bad_rows=(bad, held_bad))
    columns = _text_columns(rows, text_column, text_pair_column, most=2)
    label = rows.column(label_column, LABEL_COLUMNS, "--label-column")
    train, remarks = _read(rows, columns, label, "training", bad, unit=True)
    train = _with_queries(train)
    if held_rows is not None:
        test, held_remarks = _read(held_rows, columns, label, "evaluation", held_bad, unit=True)
        test = _with_queries(test)
        remarks += held_remarks
    else:
        train, test = hold_out(train, eval_fraction, seed, groups=train["query_id"][:])
    labels = np.asarray(train["target"])
    return TrainingData(
        train=train,
        evaluation=test,
        task=Rerank() if _has_rankings(test) else LabelledPairs(),
        labels=("LABEL_0",),  # as sentence-transformers names the score
        problem_type=None,
        summary=f"{columns[0]}, {columns[1]}: {len(set(train['query_id'])):,} queries, {labels.mean():.0%} of the "
        "passages answer theirs",
        remarks=(*remarks, *bad.remarks(), *held_bad.remarks()),
    )


def _first(columns: Sequence[str], names: Sequence[str]) -> str | None:
    try:
        return next((found for name in names if (found := find_column(columns, name)) is not None), None)
    except ValueError as error:
        raise DataError(f"the training data has several such columns: {error}; name one with --label-column") from None


def _text_columns(rows: Rows, first: str | None, second: str | None, *, most: int) -> list[str]:
    """The columns that the options name, or those with known names."""
    names = ",".join(filter(None, (first, second)))
    if names:
        chosen = split_columns(names, rows.columns)
        if not 2 <= len(chosen) <= most or len(set(chosen)) < len(chosen):
            number = "two columns" if most == 2 else "two or three columns"
            raise UsageError(
                f"--text-column (and --text-pair-column) must name {number} with commas between them, got {names!r}"
            )
        return [rows.column(name, (), "--text-column") for name in chosen]
    columns = [rows.column(None, known, "--text-column") for known in (FIRST, SECOND)]
    third = _first(rows.columns, THIRD) if most == 3 else None
    return columns if third is None else [*columns, third]


def _read(
    rows: Rows, columns: Sequence[str], number: str | None, part: str, bad: BadRows, *, unit: bool = False
) -> tuple[Any, list[str]]:
    """The rows whose texts are all there, as `texts` (and `target`), and remarks. `unit`: numbers from 0 to 1."""
    for name in columns:
        rows.provide(name, "--text-column")
    if number is not None:
        rows.provide(number, "--label-column")
    before, texts, targets = bad.count, [], []
    for record, place in zip(rows.records, rows.places, strict=True):
        found = [rows.text(record, name) for name in columns]
        if not all(isinstance(text, str) and text.strip() for text in found):
            continue
        if any(map(has_half_a_character, found)):
            bad.add(place, "a text holds half a character (a lone surrogate)")
            continue
        try:
            target = None if number is None else _number(record.get(number), number, unit=unit)
        except ValueError as error:
            bad.add(place, str(error))
        else:
            texts.append(found)
            targets.append(target)
    if not texts:
        reasons = "".join(f"; {remark}" for remark in bad.remarks())
        raise DataError(f"the {part} data has no row with texts in the columns {', '.join(columns)}{reasons}")
    blank = len(rows.records) - len(texts) - (bad.count - before)
    remark = f"{blank:,} of {len(rows.records):,} rows of the {part} data lack one of {', '.join(columns)}: left out"
    columns_read = {"texts": texts} | ({"target": targets} if number is not None else {})
    return datasets.Dataset.from_dict(columns_read), [*rows.remarks, *([remark] if blank else [])]


def _number(value: Any, column: str, *, unit: bool) -> float:
    """Raises `ValueError`."""
    try:
        found = finite_number(value)
    except (ValueError, OverflowError):
        raise ValueError(f"column {column!r}: {value!r:.80} is not a number") from None
    if unit and not 0 <= found <= 1:
        raise ValueError(f"column {column!r}: {value!r:.80} is not from 0 (no answer) to 1 (an answer)")
    return found


def _with_queries(rows: Any) -> Any:
    """`texts` as `query` and `passage`, and `query_id`: equal queries have equal numbers, from 0 without gaps."""
    queries, passages = zip(*rows["texts"], strict=True)
    numbers = {query: number for number, query in enumerate(dict.fromkeys(queries))}
    return datasets.Dataset.from_dict(
        {
            "query": list(queries),
            "passage": list(passages),
            "target": rows["target"][:],
            "query_id": [numbers[query] for query in queries],
        }
    )


def _has_rankings(rows: Any) -> bool:
    """Whether most queries that have an answer have other passages to rank, too."""
    numbers = np.asarray(rows["query_id"])
    answered = np.bincount(numbers, weights=np.asarray(rows["target"]) >= 0.5) > 0
    passages = np.bincount(numbers)[answered]
    return bool((passages > 1).mean() > 0.5) if len(passages) else False
