"""Training data of texts alone: nothing is labelled, since the texts themselves are what is learned."""

from __future__ import annotations

import datasets

from nopad.runtime.data.fields import TEXT_COLUMNS
from nopad.runtime.errors import UsageError
from nopad.training.bad_rows import BadRows, OnBadRow, has_half_a_character
from nopad.training.data import TrainingData
from nopad.training.errors import DataError
from nopad.training.recipe import EVAL_FRACTION, Recipe
from nopad.training.sources import Rows, Sources
from nopad.training.splits import hold_out, read_parts
from nopad.training.tasks.masked_lm import MASK_PROBABILITY, MaskedLM


def load_texts(
    source: Sources,
    evaluation: Sources | None = None,
    *,
    text_column: str | None = None,
    eval_fraction: float = EVAL_FRACTION,
    bad_rows: OnBadRow = "refuse",
    seed: int = Recipe.seed,
    mask_probability: float = MASK_PROBABILITY,
    whole_word: bool = False,
) -> TrainingData:
    """Read the texts of `source` (and of `evaluation`, or a split of it, or a held-out fraction).

    The data has columns `text` and, to evaluate on, `number`. Raises `DataError`, and `UsageError` for a
    `mask_probability` that hides nothing or everything.
    """
    if not 0 < mask_probability < 1:
        raise UsageError(f"--mask-probability must be between 0 and 1, got {mask_probability}")
    bad, held_bad = BadRows(bad_rows, "training"), BadRows(bad_rows, "evaluation")
    wanted = [text_column] if text_column else TEXT_COLUMNS
    rows, held_rows = read_parts(source, evaluation, wanted=wanted, bad_rows=(bad, held_bad))
    column = rows.column(text_column, TEXT_COLUMNS, "--text-column")
    texts, remarks = _texts(rows, column, "training", bad)
    train = datasets.Dataset.from_dict({"text": texts})
    if held_rows is None:
        train, test = hold_out(train, eval_fraction, seed)
    else:
        held_rows.provide(column, "--text-column")
        held_texts, held_remarks = _texts(held_rows, column, "evaluation", held_bad)
        test = datasets.Dataset.from_dict({"text": held_texts})
        remarks += [*held_rows.remarks, *held_remarks]
    unit = "words" if whole_word else "tokens"
    return TrainingData(
        train=train,
        evaluation=test.add_column("number", list(range(len(test)))),
        task=MaskedLM(mask_probability=mask_probability, whole_word=whole_word),
        labels=(),
        problem_type=None,
        summary=f"{100 * mask_probability:.4g} % of the {unit} are hidden, and found again",
        remarks=(*rows.remarks, *remarks, *bad.remarks(), *held_bad.remarks()),
    )


def _texts(rows: Rows, column: str, part: str, bad: BadRows) -> tuple[list[str], list[str]]:
    """The texts, and a remark on rows without one. Raises `DataError`."""
    texts = []
    for record, place in zip(rows.records, rows.places, strict=True):
        text = rows.text(record, column)
        if not isinstance(text, str) or not text.strip():
            bad.add_blank()
            continue
        if has_half_a_character(text):
            bad.add(place, f"column {column!r} holds half a character (a lone surrogate)")
            continue
        texts.append(text)
    if not texts:
        raise DataError(f"the {part} data has no row with text in column {column!r}")
    return texts, bad.remark_on_blank(len(rows.records), f"have no text in column {column!r}")
