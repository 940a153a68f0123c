"""Training data of texts alone: nothing is labelled, since the texts themselves are what is learned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import datasets

from nopad.runtime.data.fields import TEXT_COLUMNS
from nopad.runtime.errors import UsageError
from nopad.training.bad_rows import BadRows, OnBadRow, OnDuplicate, checked_text
from nopad.training.data import TrainingData
from nopad.training.errors import DataError
from nopad.training.recipe import EVAL_FRACTION, Recipe
from nopad.training.repeats import LabelledText
from nopad.training.rows_on_disk import as_dataset
from nopad.training.sources import Rows, Sources
from nopad.training.splits import divide, group_column, read_parts
from nopad.training.tasks.masked_lm import MASK_PROBABILITY, MaskedLM


@dataclass(frozen=True, kw_only=True)
class _Text:
    text: str
    place: str
    group: Any


def load_texts(
    source: Sources,
    evaluation: Sources | None = None,
    *,
    text_column: str | None = None,
    eval_fraction: float = EVAL_FRACTION,
    split_group: str | None = None,
    duplicates: OnDuplicate | None = None,
    bad_rows: OnBadRow = "refuse",
    seed: int = Recipe.seed,
    mask_probability: float = MASK_PROBABILITY,
    whole_word: bool = False,
) -> TrainingData:
    """Read the texts of `source` (and of `evaluation`, or a split of it, or a held-out fraction).

    Repeats are looked for only if `duplicates` says what becomes of them: there may be very many texts.
    The data has columns `text` and, to evaluate on, `number`. Raises `DataError`, and `UsageError` for a
    `mask_probability` that hides nothing or everything.
    """
    if not 0 < mask_probability < 1:
        raise UsageError(f"--mask-probability must be between 0 and 1, got {mask_probability}")
    bad, held_bad = BadRows(bad_rows, "training"), BadRows(bad_rows, "evaluation")
    wanted = [text_column] if text_column else TEXT_COLUMNS
    rows, held_rows = read_parts(source, evaluation, wanted=wanted, bad_rows=(bad, held_bad))
    column = rows.column(text_column, TEXT_COLUMNS, "--text-column")
    group = group_column(rows, held_rows, split_group)
    texts, remarks = _texts(rows, column, "training", bad, group)
    held: Sequence[_Text] | None = None
    if held_rows is not None:
        held_rows.provide(column, "--text-column")
        held, held_remarks = _texts(held_rows, column, "evaluation", held_bad)
        remarks += [*held_rows.remarks, *held_remarks]
    train, test, repeats = divide(
        texts,
        held,
        as_text=lambda row: LabelledText(text=row.text, label=None, place=row.place),
        eval_fraction=eval_fraction,
        seed=seed,
        groups=(row.group for row in texts) if group is not None else None,
        duplicates=duplicates,
    )
    text = datasets.Value("string")
    unit = "words" if whole_word else "tokens"
    return TrainingData(
        train=as_dataset(({"text": row.text} for row in train), {"text": text}),
        evaluation=as_dataset(
            ({"text": row.text, "number": number} for number, row in enumerate(test)),
            {"text": text, "number": datasets.Value("int64")},
        ),
        task=MaskedLM(mask_probability=mask_probability, whole_word=whole_word),
        labels=(),
        problem_type=None,
        summary=f"{100 * mask_probability:.4g} % of the {unit} are hidden, and found again",
        remarks=(*rows.remarks, *remarks, *bad.remarks(), *held_bad.remarks(), *repeats),
    )


def _texts(
    rows: Rows, column: str, part: str, bad: BadRows, group: str | None = None
) -> tuple[Sequence[_Text], list[str]]:
    """The texts, and a remark on rows without one. Raises `DataError`."""

    def make(record: dict[str, Any], place: str) -> _Text | None:
        text = checked_text(rows.text(record, column), column)
        if text is None:
            return None
        return _Text(text=text, place=place, group=record.get(group) if group is not None else None)

    texts = rows.usable(make, bad)
    if not texts:
        raise DataError(f"the {part} data has no row with text in column {column!r}")
    return texts, bad.remark_on_blank(len(rows), f"have no text in column {column!r}")
